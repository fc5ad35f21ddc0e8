"""A Jupyter kernel of its own, to be interrupted and killed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.kernelspec import KernelSpec

from helpers.tiny import ROOT

SECONDS = 120.0


def said(content: Any) -> str:
    """What a message has of a cell's text, or the name of its error."""
    return str(content.get("text") or content.get("ename", ""))


class Kernel:
    """An ipykernel process and what its cells print."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manager = KernelManager(transport="ipc", ip=str(folder / "kernel"))
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self.manager._kernel_spec = KernelSpec(argv=command, display_name="python", language="python")
        self.manager.start_kernel(cwd=str(folder), env={**os.environ, "PYTHONPATH": str(ROOT)})
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=SECONDS)

    def send(self, code: str) -> str:
        """Begin a cell; returns its number."""
        return str(self.client.execute(code, stop_on_error=False))

    def heard(self, wanted: Callable[[Any], bool]) -> Any:
        """The content of the next message that is wanted. The job's own messages keep coming, and pass by."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            message = self.client.get_iopub_msg(timeout=SECONDS)
            if wanted(message):
                return message["content"]
        raise TimeoutError(f"not heard in {SECONDS} s")

    def printed(self, cell: str) -> str:
        """The next that the cell prints, or the name of its error. A line's end may come in a message of its own."""
        return said(
            self.heard(lambda m: m["parent_header"].get("msg_id") == cell and bool(said(m["content"]).strip()))
        ).strip()

    def run(self, code: str) -> str:
        """All that the cell prints, or the name of its error, when it has ended and the kernel is idle. A line may come
        in several messages."""
        cell, texts = self.send(code), []

        def ends(message: Any) -> bool:
            if message["parent_header"].get("msg_id") != cell:
                return False
            texts.append(said(message["content"]))
            return message["content"].get("execution_state") == "idle"

        self.heard(ends)
        return "".join(texts).strip()

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()

    def interrupted(self, code: str) -> str:
        """Run a cell that prints something and then waits, interrupt it, and name its error."""
        cell = self.send(code)
        self.printed(cell)
        self.interrupt()
        return self.printed(cell)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.context.destroy(linger=0)
