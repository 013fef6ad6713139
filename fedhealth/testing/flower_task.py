"""What Flower's Message constructor asks for, for tests that build Messages in their own process."""

from fedhealth.flower.task import flower_task

__all__ = ["flower_task"]
