"""The papermill engine: `papermill --engine kajiya`, and what the runner registers.

papermill loads this module in the middle of its own import, so nothing of papermill is imported here, and the class
has the methods of papermill's engines without being one.
"""

import asyncio
from pathlib import Path
from typing import Any, Protocol


class Session(Protocol):
    """What the runner puts in: how a notebook with its parameters in place is run."""

    def execute(self, nb: Any) -> Any: ...


class KajiyaEngine:
    """Runs a notebook with an append-only event log; nothing is rewritten while it runs."""

    @classmethod
    def execute_notebook(cls, nb: Any, kernel_name: str, session: Session | None = None, **_: Any) -> Any:
        """Runs through the given session; without one, on a kernel of its own, and returns the executed notebook."""
        if session is None:
            return asyncio.run(_alone(nb, kernel_name))
        return session.execute(nb)

    @classmethod
    def nb_kernel_name(cls, nb: Any, name: str | None = None) -> str:
        name = name or nb.metadata.get("kernelspec", {}).get("name")
        if not name:
            raise ValueError("The notebook names no kernel. Give one with --kernel, or save it in JupyterLab.")
        return name

    @classmethod
    def nb_language(cls, nb: Any, language: str | None = None) -> str:
        info, spec = nb.metadata.get("language_info", {}), nb.metadata.get("kernelspec", {})
        language = language or info.get("name") or spec.get("language")
        if not language:
            raise ValueError("The notebook names no language. Give one with --language, or save it in JupyterLab.")
        return language


async def _alone(nb: Any, kernel_name: str) -> Any:
    import importlib
    import os

    from kajiya.runner.assemble import assemble
    from kajiya.runner.budget import Budget
    from kajiya.runner.execution import Execution
    from kajiya.runner.kernel import Kernel
    from kajiya.runner.recorder import Recorder
    from kajiya.runner.sink import ListSink

    nbformat: Any = importlib.import_module("nbformat")
    sink = ListSink()
    kernel = Kernel(kernel_name)
    await kernel.start(Path.cwd(), dict(os.environ))
    try:
        await kernel.ready(60)
        outcome = await Execution(nb, kernel, Recorder(sink, Budget())).run()
    finally:
        await kernel.shutdown(5)
    out = nbformat.from_dict({**assemble(nb, sink.events)})
    if outcome.ending == "kernel_died":
        raise RuntimeError(f"The kernel ended before the notebook did: {kernel.exit_words()}.")
    return out
