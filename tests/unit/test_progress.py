"""The sentences of a start reach whoever looks, early or late."""

import asyncio

from kajiya_spawner.progress import ProgressLog


async def collect(log: ProgressLog) -> list[dict[str, object]]:
    return [event async for event in log.follow()]


async def test_early_and_late_readers_see_the_same() -> None:
    log = ProgressLog()
    early = asyncio.create_task(collect(log))
    await asyncio.sleep(0)
    log.say(10, "one")
    log.say(40, "two")
    await asyncio.sleep(0)
    log.say(20, "three")
    log.end()
    seen = await early
    assert [e.get("message") for e in seen] == ["one", "two", "three"]
    assert [e["progress"] for e in seen] == [10, 40, 40], "it never goes back"
    assert await collect(log) == seen


async def test_a_sentence_said_again_only_moves_the_bar() -> None:
    log = ProgressLog()
    log.say(10, "fetching")
    log.say(20, "fetching")
    log.say(100, "done")
    log.end()
    assert log.events == [
        {"progress": 10, "message": "fetching"},
        {"progress": 20},
        {"progress": 99, "message": "done"},
    ]
