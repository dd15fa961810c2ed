"""A short load; `nox -s load` runs the long one."""

import asyncio

from load import load

from server_process import Server


def test_answers_stay_the_same_among_clients_that_misbehave(server: Server) -> None:
    found, _ = asyncio.run(load(server.address, server.process.pid, 8, 12))
    assert not found.wrong
    assert len(found.done) >= 6
