"""Where runs are recorded: in MLflow, or by one of Lightning's loggers; see ``tracker``."""
