"""The Compare tab: one question to several panes. It must never know how an answer is computed."""
