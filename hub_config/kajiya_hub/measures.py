"""What the loop tells of its pace, to whoever measures it."""


class Measures:
    """What the loop tells of its pace, in seconds; this one listens to nothing."""

    def waited(self, seconds: float) -> None:
        """A job that could have started began its attempt after so long."""

    def round(self, seconds: float) -> None:
        """A round ended so long after it was due."""

    def failed(self) -> None:
        """A round failed."""
