"""An app in an operating system's process of its own: the client side of `docs/app-protocol.md`.

Of the kernel it uses, beside the ABI and the errors, two files of the standard library alone that both
sides must do alike: how calls are named (`strands`) and how things are given one at a time (`delivery`).
"""
