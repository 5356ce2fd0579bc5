"""Records, rules and refusals of the control plane; nothing here waits, talks or looks at a clock."""
