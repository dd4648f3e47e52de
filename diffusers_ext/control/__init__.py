"""ControlNet (Zhang & Agrawala 2023): conditional control on a frozen text-to-image model."""
