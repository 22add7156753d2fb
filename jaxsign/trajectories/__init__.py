"""Parameters of any stored step of a sweep, and new observables of old runs."""

from jaxsign.trajectories.reader import RunTrajectory as RunTrajectory
from jaxsign.trajectories.reader import Trajectory as Trajectory
from jaxsign.trajectories.reader import open_trajectory as open_trajectory
