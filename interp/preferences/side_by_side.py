"""Work on parts of a list side by side, in threads that compute with one core each.

Forwards of few tokens hardly gain by a second core within each product; two of them at a time gain nearly twofold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

import torch

from interp.models.model import Model

Part = TypeVar("Part")
Done = TypeVar("Done")


def workers(model: Model) -> int:
    """How many parts are worked on at a time: as many as torch has threads on a CPU, and one on any other device.

    One for a model in half precision too, of which every part has a copy in single precision.
    """
    return torch.get_num_threads() if model.device.type == "cpu" and model.dtype in (torch.float32, torch.float64) else 1


def side_by_side(work: Callable[[Part], Done], parts: Sequence[Part], count: int) -> Iterator[Done]:
    """What `work` returns for each part, in the order of the parts; `count` of them are worked on at a time.

    Threads see the edits and settings of the caller's context. An error of one part is raised where its result is due.
    """
    if count < 2 or len(parts) < 2:
        yield from map(work, parts)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(min(count, len(parts)), initializer=torch.set_num_threads, initargs=(1,))
    try:
        futures = [pool.submit(copy_context().run, work, part) for part in parts]
        for future in futures:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
