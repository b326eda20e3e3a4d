"""The paper's figures and ours, drawn from committed rows."""
