"""Evaluates on the devices of a Ray cluster. An actor for each gets recipes and gives scores;
tensors stay where they are read.

Who gets which job is decided by `PoolRunner`, as for worker processes. Ray starts the actors,
carries the messages and says who has died.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import MachineError, SearchError, one_line, optional
from ...fitness import Scores
from ..evaluation.devices import check_devices, device_kind, devices_of, on_device
from ..evaluation.evaluator import Evaluator
from ..evaluation.memory import workers_that_fit
from ..evaluation.provenance import Files, check_files, version_of, versions
from ..file.config import SearchConfig
from .job import Job
from .limits import Limit, Limits
from .runner import PoolRunner
from .workers import TICK, MachineLostError, MakeEvaluator

logger = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds in which an actor says what it has taken, unless it hangs
_STARTS = 3  # of an actor whose process dies before it is ready
_NODES = 5.0  # seconds between two looks at which machines there are
_ALONE = 600.0  # seconds to wait where no machine can evaluate anything


def require_ray() -> Any:
    """Ray; raises `SearchError` where it is not installed."""
    return optional("ray", "scale", "--ray: every machine", SearchError)


class ClusterEvaluator:
    """Actor: an `Evaluator` that is made from one message, and says meanwhile what its evaluation
    takes."""

    def __init__(self) -> None:
        self._begun = self._loading_since = 0.0
        self._loaded = 0.0
        self._evaluator: Evaluator | None = None

    def start(self, expected: dict[str, str], message: bytes) -> str:
        """Open the sources, and see that all is as where the search runs.

        Args:
            expected: The versions there.
            message: Pickled for after they have been compared: config, what makes an
                evaluator, the files' digests.

        Returns:
            The kind of device.

        Raises:
            EvoMergeError: Something is not as there; the message does not name the machine.
        """
        for name, version in expected.items():
            if (here := version_of(name)) != version:
                raise SearchError(
                    f"has {name} {here}, and the search runs with {version}; install the same"
                )
        # Only after the versions were compared: an object of another version may not unpickle, and
        # the error would not say why.
        config, make, files = pickle.loads(message)
        check_devices(config)
        self._evaluator = make(config)
        self._evaluator.models.loading = self._load
        check_files(self._evaluator, files)
        self._evaluator.tasks.check_examples("search")
        return device_kind(devices_of(config)[0])

    def evaluate(self, job: Job) -> Scores:
        """Evaluate a job."""
        assert self._evaluator is not None  # it has been started
        self._loaded = 0.0
        self._begun = time.monotonic()
        return self._evaluator.evaluate(**vars(job))

    def taken(self) -> float:
        """Seconds that the evaluation has taken so far, without those in which models were
        loaded."""
        now = time.monotonic()
        loading = now - self._loading_since if self._loading_since else 0.0
        return now - self._begun - self._loaded - loading

    def _load(self, begins: bool) -> None:
        now = time.monotonic()
        self._loaded += 0.0 if begins else now - self._loading_since
        self._loading_since = now if begins else 0.0


@dataclass(frozen=True)
class _Node:
    """A machine of the cluster: Ray's id, a name for people, and what it has."""

    id: str
    name: str
    resources: Mapping[str, float]


# The time of a job is known to the actor alone, which sees when models load. This side waits until
# the limit has passed on its own clock, then asks (`taken`, in a concurrency group of its own, so
# it answers during an evaluation) and waits a second between questions. An actor that does not
# answer for `_PATIENCE` seconds hangs in native code and is judged by the time on this side.
#
# A dead actor blames its job, unless its machine has left the cluster: then nobody is to blame.
class RayWorker:
    """An actor on one device, and the job that it is at; see `PoolWorker`.

    Args:
        node: Where it is.
        make: Makes the actor.
        first: What `ClusterEvaluator.start` is called with.
        admit: Called with the kind of its device, and the name of the machine.
    """

    def __init__(
        self,
        node: _Node,
        make: Callable[[], Any],
        first: tuple[Any, ...],
        admit: Callable[[str, str], None],
    ) -> None:
        self.node = node
        self._make = make
        self._first = first
        self._admit = admit
        self.index: int | None = None
        self.ref: Any = None  # what it will answer
        self._actor: Any = None
        self._ready = False
        self._deaths = 0
        self._limit = Limit()
        self._begun = 0.0
        self._next = 0.0
        self._asked: tuple[Any, float] | None = None

    def takes_job(self) -> bool:
        """Tell whether it has nothing to do and is ready; it is started where it is not.

        Raises:
            SearchError: It cannot be started; the message names the machine.
        """
        if self._actor is None:
            self._actor = self._make()
            self.ref = self._actor.start.remote(*self._first)
        if not self._ready and _is_there(self.ref):
            try:
                self._admit(self._answer(), self.node.name)
            except MachineLostError:
                return False
            except EOFError as cause:
                self._deaths += 1
                if self._deaths == _STARTS:
                    what = one_line(cause.__cause__ or cause, 500)
                    raise SearchError(
                        f"{self.node.name}: a worker does not start: {what}"
                    ) from cause
                return False
            self._ready = True
            self._deaths = 0
        return self._ready and self.index is None

    def begin(self, index: int, job: Job, limit: Limit) -> None:
        """See `PoolWorker`."""
        self.index = index
        self._limit = limit
        self._asked = None
        self._begun = time.monotonic()
        self._next = limit.seconds
        self.ref = self._actor.evaluate.remote(job)

    def look(self) -> Scores | None:
        """See `PoolWorker`."""
        if _is_there(self.ref):
            scores = self._answer()
            if not isinstance(scores, Scores):
                what = f"a worker answers {type(scores).__name__} in place of scores"
                raise SearchError(f"{self.node.name}: {what}; install the same version there")
            self.index = None
            return scores
        passed = time.monotonic() - self._begun
        if self._asked is None:
            if passed > self._next:
                self._asked = self._actor.taken.options(concurrency_group="watch").remote(), passed
            return None
        answer, since = self._asked
        seconds = passed
        if _is_there(answer):
            self._asked = None
            self._next = passed + 1.0
            try:
                seconds = require_ray().get(answer)
            except require_ray().exceptions.RayError:  # which the next look will find
                return None
        elif passed - since < _PATIENCE:
            return None
        line = self._limit.exceeded(seconds)
        if line is None:
            return None
        self.end()
        return Scores.failed(line, seconds)

    def end(self) -> None:
        """See `PoolWorker`."""
        if self._actor is not None:
            require_ray().kill(self._actor)
        self._actor = self.ref = self.index = None
        self._ready = False

    def _answer(self) -> Any:
        """Return what came; raises as `PoolWorker.look` does."""
        ray = require_ray()
        try:
            answer = ray.get(self.ref)
        except ray.exceptions.RayTaskError as error:
            kind = MachineError if isinstance(error.cause, MachineError) else SearchError
            self.ref = self.index = None
            raise kind(f"{self.node.name}: {one_line(error.cause, 500)}") from error
        except ray.exceptions.RayError as error:
            self.end()
            if isinstance(error, ray.exceptions.ActorUnavailableError) or self.node.id not in {
                node.id for node in _alive()
            }:
                raise MachineLostError from error
            raise EOFError from error
        self.ref = None
        return answer


class RayRunner(PoolRunner[RayWorker]):
    """Evaluates with an actor on every device of a cluster; see `PoolRunner`.

    Joins the cluster that ``RAY_ADDRESS`` names, or that runs on this machine, or starts one here.
    Machines that come later are used, those that go are not missed.

    Args:
        config: The search.
        workers: How many actors at most; one per device where None. More than there are GPUs share
            them.
        memory: Bytes that one of them takes, by which a machine without GPU has so many.
        limits: What a job may take; everything by default.
        files: The digests of the sources' files, which those of every machine must have.
        admit: Called with the kind of each device, and the name of its machine.
        make: Makes an evaluator on a machine, with the examples that are sent there.

    Raises:
        SearchError: Ray is not installed, or no machine has the search's device.
    """

    def __init__(
        self,
        config: SearchConfig,
        workers: int | None,
        *,
        memory: int,
        files: Mapping[str, Files],
        admit: Callable[[str, str], None],
        limits: Limits | None = None,
        make: MakeEvaluator,
    ) -> None:
        super().__init__(limits)
        self._ray = require_ray()
        self._own = not self._ray.is_initialized()
        if self._own:
            _join(self._ray)
        self._wanted = workers
        self._memory = memory
        self._threads = config.compute.threads
        self._admit = admit
        nodes = _alive()
        gpus = sum(node.resources.get("GPU", 0.0) for node in nodes)
        named = given if isinstance(given := config.compute.device, str) else given[0]
        on_gpu = named.startswith("cuda") or (named == "auto" and gpus > 0)
        # Ray hands out fractions of a GPU: with more workers than GPUs each takes 1 / per_gpu of
        # one.
        self._per_gpu = (
            math.ceil(max(workers or 1, gpus) / gpus) if on_gpu and gpus else int(on_gpu)
        )
        here = "cpu" if named == "auto" else named
        config = on_device(config, "cuda" if on_gpu else here)
        message = self._ray.cloudpickle.dumps((config, make, dict(files)))
        self._first = (versions(), self._ray.put(message))
        self._actor = self._ray.remote(
            concurrency_groups={"watch": 1}, max_restarts=0, max_task_retries=0
        )(ClusterEvaluator)
        self._looked = self._asked = self._alive_at = time.monotonic()
        self._follow(nodes)
        if not self.workers:
            names = ", ".join(node.name for node in nodes)
            what = "a GPU"
            if not on_gpu:
                what = (
                    f"{config.compute.threads} CPUs (threads) and {memory / 1e9:.3g} GB for a "
                    "worker"
                )
            self.close()
            raise SearchError(
                f"compute.device: no machine of the cluster has {what}; there are {names}"
            )

    def free(self) -> Iterator[RayWorker]:
        """See `PoolRunner`."""
        return (worker for worker in self.workers if worker.takes_job())

    def wait(self, busy: Sequence[RayWorker]) -> Sequence[RayWorker]:
        """See `PoolRunner`."""
        pending = {worker.ref: worker for worker in self.workers if worker.ref is not None}
        if pending:
            self._ray.wait(list(pending), timeout=TICK)
        else:
            time.sleep(TICK)
        now = time.monotonic()
        if now - self._asked > _NODES:
            self._asked = now
            self._follow(_alive())
        if busy:
            self._alive_at = now
        elif now - self._alive_at > _ALONE:
            raise SearchError(
                f"no machine of the cluster is ready after {_ALONE:.0f} s; see `ray status`, "
                "and go on"
            )
        if now - self._looked > TICK:  # at all of them: one may have taken too long
            self._looked = now
            return busy
        ready, _ = (
            self._ray.wait(list(pending), num_returns=len(pending), timeout=0)
            if pending
            else ([], [])
        )
        for worker in (workers := [pending[ref] for ref in ready]):
            if worker.index is None:  # it has started
                worker.takes_job()
        return [worker for worker in workers if worker.index is not None]

    def close(self) -> None:
        """End the actors, and the cluster where it was started for them."""
        super().close()
        if self._own:
            self._ray.shutdown()

    def _follow(self, nodes: Sequence[_Node]) -> None:
        """Have workers on the machines that there are, and forget those of machines that are
        gone."""
        there = {node.id for node in nodes}
        for worker in list(self.workers):
            if worker.node.id not in there and worker.index is None:
                worker.end()
                self.workers.remove(worker)
        known = {worker.node.id for worker in self.workers}
        for node in nodes:
            count = 0 if node.id in known else self._count(node.resources)
            room = count if self._wanted is None else min(count, self._wanted - len(self.workers))
            self.workers += [
                RayWorker(node, self._maker(node), self._first, self._admit) for _ in range(room)
            ]

    def _count(self, resources: Mapping[str, float]) -> int:
        if self._per_gpu:
            return int(resources.get("GPU", 0)) * self._per_gpu
        return workers_that_fit(
            int(resources.get("CPU", 0)), resources.get("memory", 0.0), self._threads, self._memory
        )

    def _maker(self, node: _Node) -> Callable[[], Any]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        place = NodeAffinitySchedulingStrategy(node.id, soft=False)
        needs = (
            {"num_gpus": 1 / self._per_gpu, "num_cpus": 0}
            if self._per_gpu
            else {"num_cpus": self._threads}
        )
        return lambda: self._actor.options(scheduling_strategy=place, **needs).remote()


def _join(ray: Any) -> None:
    """Join a cluster, or start one; Ray's own handler of SIGTERM does not take the place of
    ours."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(
        "RAY_worker_niceness", "0"
    )  # 15 by Ray's default: beside any other load its workers hardly run
    before = signal.getsignal(signal.SIGTERM)
    named = os.environ.get("RAY_ADDRESS")
    address = None
    try:
        try:
            _reach(named or _last_started())
        except OSError:
            if named:
                raise
            address = "local"  # what was started here is gone, and has left its address behind
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (
        Exception
    ) as cause:  # Ray's own are of many kinds, and plain where it does not start in time
        where = named or "this machine"
        raise SearchError(
            f"--ray: the cluster at {where} cannot be joined: {one_line(cause, 300)}"
        ) from cause
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _reach(address: str) -> None:
    """Raise `OSError` where nobody listens; Ray itself tries for twenty minutes."""
    host, _, port = address.rpartition(":")
    if (
        port.isdigit() and "/" not in host
    ):  # others are not addresses of the network: auto, or a client's
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()


def _last_started() -> str:
    """The address that Ray left where it last started on this machine, and looks for by itself."""
    temporary = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    file = Path(temporary, "ray", "ray_current_cluster")
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _alive() -> list[_Node]:
    """The machines of the cluster."""
    return [
        _Node(
            node["NodeID"],
            f"node {node['NodeManagerAddress']} ({node['NodeManagerHostname']})",
            node["Resources"],
        )
        for node in require_ray().nodes()
        if node["Alive"]
    ]


def _is_there(ref: Any) -> bool:
    return bool(require_ray().wait([ref], timeout=0)[0])
