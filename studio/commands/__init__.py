"""The `stylora` commands by topic; each module puts its own into the one app. They speak through trainers.console."""
