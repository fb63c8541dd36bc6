"""The papermill engine."""


class KajiyaEngine:
    """Placeholder until the engine is drawn."""
