"""What runs inside a job: the notebook through papermill, told as an event log from which the notebook is assembled."""
