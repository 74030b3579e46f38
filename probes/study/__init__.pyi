from .reader import parse_study as parse_study
from .reader import read_study as read_study
from .run import StudyRun as StudyRun
from .run import merge_study as merge_study
from .run import open_run as open_run
from .run import run_study as run_study
from .run import study_status as study_status
from .schema import Study as Study
