"""Pipelines that load by `custom_pipeline=`: each file holds one class, and works where it is copied to.

What they do is in `diffusers_ext` (`rerank`, `control.fast`, `publish.loadable`). Their `__init__` methods look alike, but each
is written out: diffusers reads a pipeline's components, and their types, from the signature of its own `__init__`, and puts
it into `model_index.json`.
"""
