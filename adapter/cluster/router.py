"""Ray's router of requests to replicas, and which replicas it knows. Needs the extra `cluster`."""

from __future__ import annotations

from collections.abc import Mapping

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import RunningReplica

known: Mapping[str, RunningReplica] = {}  # those that are up, by the ends of their names


class Router(ConsistentHashRouter):
    """Keeps a conversation on a replica. Ray makes it in the process that asks."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        # By its name: Ray passes the class on with a copy of the module's variables.
        from adapter.cluster import router as replica_router

        super().update_replicas(replicas)
        replica_router.known = {replica.replica_id.unique_id: replica for replica in replicas}
