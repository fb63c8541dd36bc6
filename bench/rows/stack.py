"""The whole stack beside stock JupyterHub, its proxy and `mlflow server`: time to the login page, and memory."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from bench.table import Row, Sample, row
from bench.workshop import NotMeasured, Workshop, answers, free_port, pss, wait_for

REPEATS = 3


def ours(workshop: Workshop, data: Path) -> tuple[float, float]:
    port = free_port()
    began = time.perf_counter()
    with workshop.process("kajiya-hub", "up", "--data-dir", str(data), "--port", str(port)) as pid:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: answers(f"{url}/hub/login"), "Kajiya's login page")
        took = time.perf_counter() - began
        wait_for(lambda: answers(f"{url}/services/kajiya/health"), "the service", 60)
        internal = json.loads((data / "run" / "settings.json").read_text())["ports"]["mlflow"]
        wait_for(lambda: answers(f"http://127.0.0.1:{internal}/health"), "MLflow", 90)
        time.sleep(8)  # what starts beside has ended
        return took, pss([pid])


def theirs(workshop: Workshop, place: Path, node: list[str], stock: Path) -> tuple[float, float]:
    port, api, mlflow = free_port(), free_port(), free_port()
    (place / "jupyterhub_config.py").write_text(
        "c.JupyterHub.authenticator_class = 'dummy'\n"
        "c.Authenticator.allow_all = True\n"
        f"c.JupyterHub.bind_url = 'http://127.0.0.1:{port}'\n"
        f"c.JupyterHub.hub_port = {free_port()}\n"
        f"c.ConfigurableHTTPProxy.api_url = 'http://127.0.0.1:{api}'\n"
        "c.ConfigurableHTTPProxy.should_start = False\n"
        "c.ConfigurableHTTPProxy.auth_token = 'bench'\n"
    )
    token = {"CONFIGPROXY_AUTH_TOKEN": "bench", "PATH": f"{stock}:{workshop.env['PATH']}"}
    listen = ["--ip", "127.0.0.1", "--port", str(port), "--api-ip", "127.0.0.1", "--api-port", str(api)]
    began = time.perf_counter()
    with workshop.process(*node, *listen, env=token) as proxy:
        wait_for(lambda: answers(f"http://127.0.0.1:{api}/api/routes"), "the stock proxy")
        with workshop.process(str(stock / "jupyterhub"), cwd=place, env=token) as hub:
            wait_for(lambda: answers(f"http://127.0.0.1:{port}/hub/login"), "the stock login page")
            server = [str(stock / "mlflow"), "server", "--port", str(mlflow)]
            with workshop.process(*server, cwd=place, env=token) as models:
                wait_for(lambda: answers(f"http://127.0.0.1:{mlflow}/health"), "the stock MLflow")
                took = time.perf_counter() - began
                time.sleep(8)
                return took, pss([proxy, hub, models])


@row("stack")
def stack(workshop: Workshop) -> Iterator[Row]:
    node = workshop.node_proxy()
    stock = workshop.venv("stock", "jupyterhub>=6.1,<7", "jupyterlab>=4.5,<5", "mlflow>=3.17,<3.18")
    instead = "stock JupyterHub, configurable-http-proxy and mlflow server, one after the other"
    times, memory = (Sample(""), Sample(instead)), (Sample(""), Sample(instead))
    data = workshop.folder("stack-ours")
    ours(workshop, data)  # the first start makes the data directory
    for n in range(REPEATS):
        for i, found in enumerate((ours(workshop, data), theirs(workshop, workshop.folder(f"stack-{n}"), node, stock))):
            times[i].values.append(found[0])
            memory[i].values.append(found[1] / 1e6)
    if not times[0].values:
        raise NotMeasured("no start came to its end")
    yield Row("start to login page", "s", 1, False, *times)
    yield Row("whole idle stack", "MB PSS", 1, False, *memory)
