"""Studies: the published experiments beside the printed numbers, and those of one's own."""

from convla.experiments.descents.study import Study, StudyResult, read_outcomes, read_study

__all__ = ["Study", "StudyResult", "read_outcomes", "read_study"]
