"""`slm-judge annotate --engine ray`: pieces annotated by a pool of Ray Data actors.

The driver reads the table and puts the pieces that are not finished beside the finished ones; each
actor loads the judge once, annotates pieces, and keeps them. So the folder of the job must be on a
path that all nodes see, and an interrupted job goes on as in one process.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from slm_judge.data.tables import Overview, Piece, TableStream
from slm_judge.errors import DataError, JudgeError, ModelError, require
from slm_judge.judge.judge import Judge

from .job import Finished, job_of, pieces_of, summarise
from .rows import AnnotateOptions, PieceAnnotator
from .store import ShardStore, digest_of


@dataclass(frozen=True)
class RayEngine:
    """An engine for `annotate_table`, on the cluster of `RAY_ADDRESS` or one of this machine."""

    model: str
    """Hub repository, folder or file, as each node finds it."""
    settings: dict[str, Any]
    """Of `Judge.from_pretrained`; `n_threads` is what each worker gets."""
    workers: int
    """Actors, a judge each."""
    gpus: float = 0.0
    """Share of a GPU for each worker."""

    def check(self, judge: Judge) -> None:
        """Refuse what every worker would refuse, before one is started.

        Raises:
            ModelError: compiled layers are asked for where there are none, or no GPU.
        """
        if self.settings.get("compile"):
            if judge.backend.name != "transformers":
                raise ModelError("--compile is for transformers. Leave it out.")
            if not self.gpus:
                raise ModelError(
                    "--compile gains nothing but on a CUDA GPU. Give each worker one (--gpus 1), "
                    "or leave it out."
                )

    def __call__(
        self, stream: TableStream, annotator: PieceAnnotator, store: ShardStore
    ) -> Iterator[Finished]:
        """Finish every piece.

        Raises:
            DataError: a row cannot be annotated and the policy is to fail, or a node has another
                judge than this machine.
        """
        waiting, row = [], 0
        for index, piece, digest in pieces_of(stream, annotator):
            finished = store.find(index, digest)
            if finished is not None:
                yield summarise(finished, annotator, 0)
            else:
                store.put_input(index, piece.table)
                waiting.append({"index": index, "first_row": row})
            row += piece.table.num_rows
        if waiting:
            yield from self._run(waiting, annotator, store)

    def _run(
        self, waiting: list[dict[str, int]], annotator: PieceAnnotator, store: ShardStore
    ) -> Iterator[Finished]:
        ray = require("ray.data", "ray")
        core = require("ray", "ray")
        if not core.is_initialized():
            core.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        threads, there = self.settings.get("n_threads") or 1, core.cluster_resources()
        for what, wanted in (("CPU", threads), ("GPU", self.gpus)):
            if wanted > there.get(what, 0):
                raise JudgeError(
                    f"A worker is to have {wanted:g} {what}, and all of Ray has "
                    f"{there.get(what, 0):g}. Lower --{'threads' if what == 'CPU' else 'gpus'}."
                )
        ray.DataContext.get_current().enable_progress_bars = False  # ours shows
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        workers = min(self.workers, len(waiting))
        blocks = min(8 * workers, len(waiting))
        # One piece a batch; a worker that is done takes the next block.
        pieces = ray.from_items(waiting, override_num_blocks=blocks).map_batches(
            PieceWorker,
            fn_constructor_kwargs={
                "model": self.model,
                "settings": self.settings,
                "options": annotator.options,
                "location": store.location,
                "job": store.job,
                "shape": store.shape,
            },
            batch_size=1,
            compute=ray.ActorPoolStrategy(size=workers),
            num_cpus=threads,
            num_gpus=self.gpus,
        )
        try:
            for done in pieces.iter_rows():
                if done["error"]:
                    raise DataError(done["error"])
                outcomes = Counter(json.loads(done["outcomes"]))
                flips = {name: Counter(dict(of)) for name, of in json.loads(done["flips"]).items()}
                yield Finished(int(done["n_rows"]), outcomes, int(done["computed"]), flips)
        except core.exceptions.RayError as error:
            last = str(error).strip().splitlines()[-1]
            kept = "Finished pieces are kept; the same command goes on."
            raise DataError(f"A worker of Ray failed: {last}\n{kept}") from error


class PieceWorker:
    """What one actor does."""

    def __init__(
        self,
        model: str,
        settings: dict[str, Any],
        options: AnnotateOptions,
        location: str,
        job: dict[str, Any],
        shape: Overview | None,
    ) -> None:
        """Load the judge."""
        judge = Judge.from_pretrained(model, **settings)
        self.annotator = PieceAnnotator(judge, options)
        self.store = ShardStore(location, job, shape=shape)
        self.same_job = json.loads(json.dumps(job_of(judge, options))) == job

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Annotate and keep the piece of a batch."""
        index, first_row = int(batch["index"][0]), int(batch["first_row"][0])
        error, done = "", Finished(0, Counter(), 0)
        try:
            done = self._annotate(index, self.store.get_input(index), first_row)
        except JudgeError as problem:  # Ray would lose its type, and try again
            error = str(problem)
        return {
            "n_rows": [done.n_rows],
            "outcomes": [json.dumps(done.outcomes)],
            "flips": [json.dumps({name: [*of.items()] for name, of in done.flips.items()})],
            "computed": [done.computed],
            "error": [error],
        }

    def _annotate(self, index: int, table: pa.Table, first_row: int) -> Finished:
        """Annotate and keep a piece.

        Raises:
            DataError: a row cannot be annotated and the policy is to fail, or this node has
                another judge than the driver.
        """
        if not self.same_job:
            raise DataError("The judge is not the same on all nodes; pin its revision.")
        # Texts of other pieces are forgotten, since which they are depends on the scheduler.
        self.annotator.forget()
        before = self.annotator.computed
        finished = self.annotator.annotate(self.annotator.prepare(Piece(table), first_row))
        self.store.write(index, finished, digest_of(table))
        self.store.drop_input(index)
        return summarise(finished, self.annotator, self.annotator.computed - before)
