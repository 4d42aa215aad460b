"""How people use the kernel: command line, interactive shell, scripts, the socket between them."""
