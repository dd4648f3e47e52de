"""The subcommands of `diffusers-ext`, one module each; see `cli`."""
