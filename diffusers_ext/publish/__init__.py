"""Publishing: pipelines and models that load anywhere, and a Hub on this machine."""
