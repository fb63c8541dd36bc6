"""The proxy that needs no Node, beside npm's configurable-http-proxy: requests per CPU-second, and memory."""

import json
import sys
import urllib.request
from collections.abc import Iterator

from bench.table import Row, Sample, row
from bench.workshop import Workshop, answers, free_port, pss, tree, wait_for

UPSTREAM = """
import asyncio, sys
from aiohttp import web
async def main():
    app = web.Application()
    bodies = {"1k": b"x" * 1024, "1m": b"x" * 1024 * 1024}
    async def get(request): return web.Response(body=bodies[request.match_info["size"]])
    app.router.add_get("/{size}", get)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[1])).start()
    await asyncio.Event().wait()
asyncio.run(main())
"""
LOAD = """
import asyncio, sys, aiohttp
async def main():
    url, n, at_once = sys.argv[1], int(sys.argv[2]), 16
    async with aiohttp.ClientSession() as session:
        async def some():
            for _ in range(n // at_once):
                async with session.get(url) as answer:
                    assert answer.status == 200
                    await answer.read()
        await asyncio.gather(*(some() for _ in range(at_once)))
asyncio.run(main())
"""


def cpu(pid: int) -> float:
    return sum(sum(p.cpu_times()[:2]) for p in tree(pid))


def measure(workshop: Workshop, command: list[str], upstream: int) -> tuple[dict[str, Sample], float]:
    port, api = free_port(), free_port()
    token = {"CONFIGPROXY_AUTH_TOKEN": "bench"}
    arguments = ["--ip", "127.0.0.1", "--port", str(port), "--api-ip", "127.0.0.1", "--api-port", str(api)]
    samples: dict[str, Sample] = {}
    with workshop.process(*command, *arguments, env=token) as pid:
        wait_for(lambda: answers(f"http://127.0.0.1:{api}/api/routes"), "the proxy")
        request = urllib.request.Request(
            f"http://127.0.0.1:{api}/api/routes/",
            json.dumps({"target": f"http://127.0.0.1:{upstream}"}).encode(),
            {"Authorization": "token bench"},
            method="POST",
        )
        urllib.request.urlopen(request, timeout=5)
        for size, n in (("1k", 6400), ("1m", 480)):
            samples[size] = Sample("npm's configurable-http-proxy")
            for repeat in range(4):
                before = cpu(pid)
                workshop.run(sys.executable, "-c", LOAD, f"http://127.0.0.1:{port}/{size}", str(n))
                if repeat:  # the first one warms up
                    samples[size].values.append(n / max(0.01, cpu(pid) - before))
        return samples, pss([pid])


@row("proxy")
def proxy(workshop: Workshop) -> Iterator[Row]:
    node = workshop.node_proxy()
    upstream = free_port()
    with workshop.process(sys.executable, "-c", UPSTREAM, str(upstream)):
        wait_for(lambda: answers(f"http://127.0.0.1:{upstream}/1k"), "the upstream server")
        ours, our_memory = measure(workshop, [sys.executable, "-m", "kajiya_hub.proxy"], upstream)
        theirs, their_memory = measure(workshop, node, upstream)
    unit = "requests per CPU-second"
    yield Row("proxy, 1 KB", unit, 1, True, ours["1k"], theirs["1k"])
    yield Row("proxy, 1 MB", unit, 1.5, True, ours["1m"], theirs["1m"])
    what = "npm's configurable-http-proxy"
    yield Row(
        "proxy, memory after that",
        "MB PSS",
        1,
        False,
        Sample("", [our_memory / 1e6]),
        Sample(what, [their_memory / 1e6]),
    )
