"""The schema of training logs: what is written is read, resumed runs leave one line a step, and old logs are still read."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from interp import UserError
from interp.bundled import BUNDLED
from interp.runs.schema import FIELDS, MEASURES
from interp.runs.telemetry import NoLog, draw, read_telemetry
from training.telemetry import Monitor, TelemetryLog, forget_after, gradient_norms, group_norms, parameter_groups

WHOLE: dict[str, Any] = {
    "loss": 0.5, "learning_rate": 1e-3, "logp_chosen": -20.0, "logp_rejected": -30.0, "margin": 0.2, "accuracy": 0.75,
    "kl": [0.0, 0.1, 0.4], "top_gaining": [[" river", 0.25], [" damn", 0.125]], "gradient_norm": {"all": 5.0, "mlp": 4.0, "norm": 3.0},
    "update_norm": {"all": 0.5}, "bits_per_byte": {"reddit": 1.5, "wikipedia": 1.25}, "toxicity": 0.3, "toxicity_share": 0.25,
    "perplexity": 60.0, "samples": [["You are", " kind"]], "tokens": 512,
}  # fmt: skip


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def steps(file: Path) -> list[int]:
    return [record["step"] for record in lines(file)]


def plain_monitor(file: Path, **settings: Any) -> tuple[Monitor, io.StringIO]:
    out = io.StringIO()
    return Monitor(file, "dpo", 4, console=Console(file=out, width=120), **settings), out


# Writing and reading


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    log = TelemetryLog(tmp_path / "dpo" / "log.jsonl")
    log.write(0, event="started")
    log.write(3, **WHOLE)
    found = read_telemetry(tmp_path)
    assert found.records == ({"stage": "dpo", "step": 0, "event": "started"}, {"stage": "dpo", "step": 3, **WHOLE})
    assert read_telemetry(tmp_path / "dpo").records == found.records == read_telemetry(tmp_path / "dpo" / "log.jsonl").records
    row = found.to_frame().iloc[1]
    assert (row["gradient_norm.mlp"], row["bits_per_byte.reddit"], row["loss"]) == (4.0, 1.5, 0.5)
    assert row["kl"] == [0.0, 0.1, 0.4]


def test_a_field_outside_the_schema_is_refused_and_every_field_has_a_meaning(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no field reward"):
        TelemetryLog(tmp_path / "log.jsonl").write(1, reward=2.0)
    assert WHOLE.keys() < FIELDS.keys()
    assert {field for measure in MEASURES.values() for field in measure.fields} < FIELDS.keys()


def test_numbers_that_json_lacks_survive(tmp_path: Path) -> None:
    TelemetryLog(tmp_path / "log.jsonl").write(1, loss=math.nan, gradient_norm={"all": math.inf, "mlp": torch.tensor(2.0)})
    text = (tmp_path / "log.jsonl").read_text()
    assert "NaN" not in text
    record = read_telemetry(tmp_path).records[0]
    assert record["loss"] is None
    assert record["gradient_norm"] == {"all": math.inf, "mlp": 2.0}
    assert read_telemetry(tmp_path).series("gradient_norm")["value"].tolist() == [math.inf, 2.0]


def test_a_last_line_that_is_still_being_written_is_left_out_and_damage_elsewhere_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [record["step"] for record in read_telemetry(log).records] == [1]
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"line 2 of the log .* is damaged"):
        read_telemetry(log)
    log.write_text('{"loss": 2.0}\n')
    with pytest.raises(UserError, match=r"line 1 .* no record of a step"):
        read_telemetry(log)
    with pytest.raises(NoLog, match="no training log at"):
        read_telemetry(tmp_path / "nowhere")
    log.write_text('{"step": 1, "lo')
    with pytest.raises(NoLog, match="no training log at"):
        read_telemetry(log)


def test_the_logs_of_before_the_schema_are_read_under_its_names() -> None:
    found = read_telemetry(BUNDLED / "log")
    assert {"pretrain", "dpo"} <= set(found.stages)
    raw = lines(BUNDLED / "log" / "dpo.jsonl")
    margins = [record["rewards/margins"] if "rewards/margins" in record else record["margin"] for record in raw if "loss" in record]
    assert found.of_stage("dpo").series("margin")["value"].tolist() == margins
    assert "all" in set(found.of_stage("pretrain").series("gradient_norm")["series"])
    with pytest.raises(UserError, match="no log of the stage 'probe'"):
        found.of_stage("probe")


# Figures


def test_every_measure_can_be_drawn_and_holds_the_logged_numbers(tmp_path: Path) -> None:
    log = TelemetryLog(tmp_path / "log.jsonl")
    for step in (1, 2):
        log.write(step, **{**WHOLE, "loss": 1 / step})
    found = read_telemetry(tmp_path)
    drawn = {figure.name: figure.spec["data"] for figure in found.figures()}
    assert list(drawn) == found.measures == list(MEASURES)
    assert drawn["loss"][0]["y"] == [1.0, 0.5]
    assert {trace["name"] for trace in drawn["logp"]} == {"chosen", "rejected"}
    assert {trace["name"] for trace in drawn["bits_per_byte"]} == {"reddit", "wikipedia"}
    assert drawn["kl"][0]["z"] == [[0.0, 0.0], [0.1, 0.1], [0.4, 0.4]]
    assert drawn["top_gaining"][0]["x"] == [0.25, 0.125]
    assert "damn" not in json.dumps(drawn["top_gaining"]), "words are masked where people look"
    assert found.latest("toxicity")["step"].unique().tolist() == [2]


def test_runs_are_drawn_side_by_side(tmp_path: Path) -> None:
    for run, margin in (("a", 1.0), ("b", 2.0)):
        TelemetryLog(tmp_path / run / "dpo" / "log.jsonl").write(1, margin=margin, kl=[0.5 * margin, 1.5 * margin])
    runs = {"true labels": read_telemetry(tmp_path / "a"), "shuffled labels": read_telemetry(tmp_path / "b")}
    traces = {trace["name"]: trace["y"] for trace in draw("margin", runs).spec["data"]}
    assert traces == {"true labels": [1.0], "shuffled labels": [2.0]}
    assert {trace["name"]: trace["y"] for trace in draw("kl", runs).spec["data"]} == traces
    with pytest.raises(UserError, match="nothing was logged of 'perplexity'"):
        draw("perplexity", runs)
    with pytest.raises(UserError, match="no measure 'reward'"):
        draw("reward", runs)


# The monitor of a run


def test_a_run_that_is_killed_and_resumed_leaves_each_step_once(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    monitor, _ = plain_monitor(file)

    def killed() -> None:
        with monitor:
            for step in (1, 2, 3):
                monitor.write(step, loss=1.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert lines(file)[-1] == {"step": 3, "event": "stopped", "reason": "KeyboardInterrupt", "seconds": lines(file)[-1]["seconds"]}
    with file.open("a") as stream:
        stream.write('{"step": 4, "lo')
    monitor, _ = plain_monitor(file, resumed=2, seconds=100.0)
    with monitor:
        for step in (3, 4):
            monitor.write(step, loss=0.5)
    found = read_telemetry(file)
    assert found.series("loss")["step"].tolist() == [1, 2, 3, 4]
    assert found.events["event"].tolist() == ["started", "resumed", "finished"]
    assert all(record["seconds"] >= 100 for record in lines(file)[3:])
    with plain_monitor(file)[0]:
        assert steps(file) == [0], "a run from the start begins a new log"


def test_a_run_that_ends_early_says_why(tmp_path: Path) -> None:
    monitor, out = plain_monitor(tmp_path / "log.jsonl")
    with monitor:
        monitor.write(1, loss=1.0)
        monitor.stop(1, "toxicity has fallen enough")
    assert lines(tmp_path / "log.jsonl")[-1]["reason"] == "toxicity has fallen enough"
    assert "stopped at step 1: toxicity has fallen enough" in out.getvalue()
    monitor, _ = plain_monitor(tmp_path / "log.jsonl")
    with pytest.raises(UserError), monitor:
        raise UserError("the loss is not finite", "lower the learning rate")
    assert lines(tmp_path / "log.jsonl")[-1]["reason"] == "the loss is not finite"


def test_without_a_terminal_only_reports_are_printed_and_in_one_only_a_live_bar(tmp_path: Path) -> None:
    monitor, out = plain_monitor(tmp_path / "log.jsonl")
    with monitor:
        monitor.show(1, loss=0.25)
        monitor.write(1, loss=0.25)
        assert out.getvalue() == ""
        monitor.write(2, toxicity_share=0.5, samples=[["a", "b"]], report=True)
    assert out.getvalue().splitlines() == ["step 2/4: loss 0.25, toxicity share 50 %, 0 min 00 s left"]
    screen = io.StringIO()
    monitor = Monitor(tmp_path / "log.jsonl", "dpo", 4, console=Console(file=screen, width=120, force_terminal=True))
    with monitor:
        monitor.show(3, loss=0.25)
        monitor._bar.refresh()
        assert "3/4" in screen.getvalue()
        assert "loss 0.25" in screen.getvalue()
    assert "\x1b[?25h" in screen.getvalue(), "the cursor is given back"


def test_a_log_forgets_what_will_be_written_again_and_a_line_cut_off(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 25}\n{"step": 50, "reason": "a\\u2028b"}\n{"step": 75}\n{"step": 1')
    forget_after(log, 50)
    assert log.read_text() == '{"step": 25}\n{"step": 50, "reason": "a\\u2028b"}\n'
    forget_after(tmp_path / "none.jsonl", 0)


# Norms by parameter group


def test_every_parameter_of_three_architectures_has_its_group() -> None:
    models = {
        "gpt2": GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=8)),
        "llama": LlamaForCausalLM(
            LlamaConfig(
                hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, vocab_size=11, max_position_embeddings=8
            )
        ),
        "bert": BertModel(BertConfig(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, vocab_size=11)),
    }
    found = {name: {group: len(part) for group, part in parameter_groups(model).items()} for name, model in models.items()}
    assert found["gpt2"] == {"embedding": 2, "norm": 6, "attention": 4, "mlp": 4}
    assert found["llama"] == {"embedding": 2, "attention": 4, "mlp": 3, "norm": 3}
    assert found["bert"] == {"embedding": 3, "norm": 6, "attention": 8, "mlp": 4, "other": 2}, "the pooler is none of the four"


def test_norms_by_group_are_those_of_the_parts() -> None:
    norms = group_norms(
        [
            ("h.0.mlp.c_fc.weight", torch.tensor([3.0, 0.0])),
            ("h.1.mlp.c_proj.weight", torch.tensor(4.0)),
            ("wte.weight", torch.tensor([12.0])),
        ]
    )
    assert norms == {"all": 13.0, "mlp": 5.0, "embedding": 12.0}
    model = torch.nn.Linear(2, 1, bias=False)
    model(torch.tensor([3.0, 4.0])).backward()
    assert gradient_norms(model) == {"all": 5.0, "other": 5.0}
    assert math.isnan(group_norms([("wte", torch.tensor([math.nan]))])["all"])
