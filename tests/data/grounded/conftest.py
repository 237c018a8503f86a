from tests.grounded_scenes import grounded_media

__all__ = ["grounded_media"]
