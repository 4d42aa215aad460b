"""LLMasOS: processes, paged memory and syscalls for language models.

    async with llmasos.boot() as kernel:
        pid = await kernel.spawn("agent", {"task": "What is in notes.md?"})
        print(await kernel.wait(pid), kernel.output_text(pid))

Importing this is quick: torch is loaded only when a kernel boots in this process.
"""

__version__ = "0.1.0"
