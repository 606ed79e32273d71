"""`Study`: the settings that the experiments of one report share, and a cache of what they measure of models.

A paper's study is a subclass with that paper's data. The cache is keyed by what a measurement depends on: its name, the weights,
tokenizer and settings of the model, and the edits. It is never keyed by the identity of an object, which another object may have later.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from interp.errors import UserError
from interp.models.digests import model_key
from interp.models.hooks import active

if TYPE_CHECKING:
    from interp.edits.edit import Edit
    from interp.models.model import Model

Progress = Callable[[str], None]
AnyStudy = TypeVar("AnyStudy", bound="Study")


@dataclass(frozen=True)
class Measurement:
    """A measured value, and whether the study's seed had a part in it."""

    value: Any
    seeded: bool


@dataclass(frozen=True)
class Part:
    """A study on other data, and the changes that make it out of the whole study."""

    study: Any
    changes: dict[str, Any]


@dataclass(eq=False, kw_only=True)
class Study:
    """The settings of one report's experiments and a cache of what they measure.

    A copy by `dataclasses.replace` starts with an empty cache. `varied` and `with_seed` give copies that keep what does not
    depend on the change.

    Attributes:
        seed: the seed of random controls and bootstrap intervals.
        quick: whether fewer data and controls are used.
        say: called with a short phrase when a long step begins.
    """

    # The names of the fields that hold data: a measurement of a model may depend on any of them.
    DATA: ClassVar[frozenset[str]] = frozenset()
    # Those of them that are lists whose items are measured one by one: a part that changes only these shares what is measured of an item.
    LISTS: ClassVar[frozenset[str]] = frozenset()

    seed: int = 0
    quick: bool = False
    say: Progress = lambda text: None
    _measurements: dict[tuple[Any, ...], Measurement] = field(default_factory=dict, init=False, repr=False)
    _parts: dict[Any, Part] = field(default_factory=dict, init=False, repr=False)
    _items: dict[tuple[Any, ...], dict[Any, Any]] = field(default_factory=dict, init=False, repr=False)
    # The digests of the models that are being measured, by the identity of the object, which lives as long as its entry.
    _keys: dict[int, str] = field(default_factory=dict, init=False, repr=False)

    def settings(self) -> dict[str, Any]:
        """The study's settings that a result depends on, which are stored with the result and shown."""
        return {"seed": self.seed, "quick": self.quick}

    def fingerprint(self) -> list[Any]:
        """Everything that the result of any experiment depends on, as JSON values: the settings, and digests of models and data."""
        return [self.settings()]

    def optional_data(self) -> Mapping[str, Callable[[], str]]:
        """A function to the digest of each piece of data that only those experiments read that name it in `reads`."""
        return {}

    def models(self) -> Sequence[Model]:
        """The models that the experiments measure and leave as they are."""
        return ()

    def manifest(self) -> dict[str, Any]:
        """The models studied, for the head of the report; empty where they are no pair."""
        return {}

    def notes(self) -> list[str]:
        """What a reader has to know before any result, in sentences."""
        return []

    def not_applicable(self, about: str) -> str | None:
        """Why a claim on `pair` or on `base` (`Experiment.about`) cannot be tested with this study, as a sentence; None where it can."""
        return None

    def measured(
        self, key: Any, make: Callable[[], Any], *, of: Model | None = None, edits: Sequence[Edit] = (), seeded: bool = False
    ) -> Any:
        """The value of `make()`, computed once for this key, this model (its weights, tokenizer and settings) and these edits.

        `make` does not change the model: what it measures of it in turn is filed under the same weights, which are not hashed again.

        Raises `UserError` inside a block that edits or hooks the model: the value would be of a model that the key does not name.

        Args:
            key: says what is measured, with every argument of the measurement that is no field of the study.
            of: the model that is measured, identified by `model_key`; None where no weights are read.
            seeded: whether the value depends on the study's seed or on its other settings; it is then measured again under others.
        """
        place = self._place(key, of, edits)
        if place not in self._measurements:
            with self._within(of, place[1]):
                value = make()
            self._measurements[place] = Measurement(value, seeded)
        return self._measurements[place].value

    def measured_items(
        self, key: Any, items: Sequence[Hashable], make: Callable[[list[Any]], Sequence[Any]], *, of: Model | None = None,
        edits: Sequence[Edit] = (),
    ) -> list[Any]:  # fmt: skip
        """One value per item, in order; `make` is called for those that neither this study nor a part of it has measured.

        For measurements in which the value of an item does not depend on the others, nor on the seed: greedy continuations of prompts,
        losses on texts. `key`, `of` and `edits` are as in `measured`. Edits that hold values for each row in turn are measured anew.
        """
        place = self._place(key, of, edits)
        if any(edit.values is not None and edit.values.dim() > 2 for edit in edits):
            return list(make(list(items)))
        known = self._items.setdefault(place, {})
        missing = list(dict.fromkeys(item for item in items if item not in known))
        if missing:
            known.update(zip(missing, make(missing), strict=True))
        return [known[item] for item in items]

    def measured_together(
        self, key: Any, items: Sequence[Hashable], variants: Sequence[Sequence[Edit]],
        make: Callable[[list[Any], list[Sequence[Edit]]], Sequence[Sequence[Any]]], *, of: Model,
    ) -> None:  # fmt: skip
        """Measure what `measured_items` will be asked for under each of these lists of edits, all at once.

        `make` is called with the items and the variants of which some item is not measured yet, and gives one list of values for each.
        """
        places = {self._place(key, of, edits): edits for edits in variants}
        missing = {place: edits for place, edits in places.items() if any(item not in self._items.get(place, {}) for item in items)}
        if missing:
            every = list(dict.fromkeys(items))
            for place, values in zip(missing, make(every, list(missing.values())), strict=True):
                self._items.setdefault(place, {}).update(zip(every, values, strict=True))

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """A block in which the study's models are looked at once, for all that is measured of them.

        Raises `UserError` where one of them is another one at the end of the block: numbers would have been kept under the wrong weights.
        """
        before = {id(model): model_key(model) for model in self.models()}
        self._keys.update(before)
        try:
            yield
            for model in self.models():
                if model_key(model) != before.get(id(model)):
                    raise UserError(f"{model.name} was changed while it was measured", "change a copy: `Model(model.plain_copy(), …)`")
        finally:
            for place in before:
                self._keys.pop(place, None)

    def measurements(self) -> Mapping[tuple[Any, ...], Measurement]:
        """The measurements made so far, by (key, digests of the model or None, digest of each edit)."""
        return dict(self._measurements)

    def varied(self: AnyStudy, **changes: Any) -> AnyStudy:
        """The same study with other settings, which keeps the measurements that were not drawn by the seed.

        Raises `ValueError` for a change of data, on which measurements depend: that is `dataclasses.replace`, which keeps none.
        """
        data = self.DATA & changes.keys()
        if data:
            raise ValueError(f"{', '.join(sorted(data))} cannot be changed while measurements are kept: use dataclasses.replace")
        other = replace(self, **changes)
        other._measurements = {place: entry for place, entry in self._measurements.items() if not entry.seeded}
        other._items, other._keys = self._items, self._keys
        other._parts = {key: Part(part.study.varied(**changes), part.changes) for key, part in self._parts.items()}
        return other

    def with_seed(self: AnyStudy, seed: int) -> AnyStudy:
        """The same study under another seed; only the measurements that do not depend on the seed are kept."""
        return self.varied(seed=seed)

    def part(self: AnyStudy, key: Any, **changes: Any) -> AnyStudy:
        """The study on other data, such as some of the prompts; made once for a key, with a cache that lasts as long as this study's.

        What is measured of single items (`measured_items`) is shared where only the lists of items differ.

        Raises `ValueError` where the key already stands for other changes.
        """
        if key not in self._parts:
            self._parts[key] = Part(replace(self, **changes), changes)
            self._parts[key].study._keys = self._keys
            if changes.keys() <= self.LISTS:
                self._parts[key].study._items = self._items
        part = self._parts[key]
        if part.changes != changes:
            raise ValueError(f"the part {key!r} of this study has other data already: use another key")
        study: AnyStudy = part.study
        study.say = self.say
        return study

    def _place(self, key: Any, of: Model | None, edits: Sequence[Edit]) -> tuple[Any, ...]:
        """The place of a measurement in a cache; raises `UserError` inside a block that edits or hooks the model."""
        if of is not None and active(of.hf).transforms:
            raise UserError(
                f"{key!r} is measured inside a block that changes the activations of {of.name}",
                "measure outside of the block, and give the edits as `edits`",
            )
        digest = None if of is None else self._keys.get(id(of)) or model_key(of)
        return (key, digest, *(edit.digest for edit in edits))

    @contextmanager
    def _within(self, of: Model | None, digest: str | None) -> Iterator[None]:
        """A block that measures this model, in which its digest is known."""
        if of is None or digest is None or id(of) in self._keys:
            yield
            return
        self._keys[id(of)] = digest
        try:
            yield
        finally:
            del self._keys[id(of)]


class Studies:
    """The studies of one report, one of each kind and seed, made when the first experiment needs one.

    Args:
        makers: by kind of study, the function that makes it from the report's models and data.
        seed: the seed of the studies that are made.
    """

    def __init__(self, makers: Mapping[type[Study], Callable[[], Study]], seed: int = 0) -> None:
        self.seed = seed
        self._makers = dict(makers)
        self._made: dict[tuple[type[Study], int], Study] = {}

    @classmethod
    def of_one(cls, study: Study) -> Studies:
        """The studies of a report that has exactly this one."""
        return cls({type(study): lambda: study}, study.seed)

    def find(self, kind: type[Study], seed: int | None = None) -> Study:
        """The study of a kind, under the report's seed or another. Raises `UserError` where this report can make none."""
        known = next((known for known in self._makers if issubclass(known, kind)), None)
        if known is None:
            names = ", ".join(sorted(known.__name__ for known in self._makers)) or "nothing"
            raise UserError(f"this needs a {kind.__name__}, and the report was given {names}", "leave it out with --only")
        if (known, self.seed) not in self._made:
            self._made[known, self.seed] = self._makers[known]()
        other = self.seed if seed is None else seed
        if (known, other) not in self._made:
            self._made[known, other] = self._made[known, self.seed].with_seed(other)
        return self._made[known, other]

    def has(self, kind: type[Study]) -> bool:
        """Whether the report can make a study of this kind."""
        return any(issubclass(known, kind) for known in self._makers)

    def notes(self) -> list[str]:
        """The notes of the first study that was made."""
        return next((study.notes() for study in self._made.values()), [])

    def manifest(self) -> dict[str, Any]:
        """The manifest of the first study that was made; empty where there is none."""
        return next((study.manifest() for study in self._made.values()), {})
