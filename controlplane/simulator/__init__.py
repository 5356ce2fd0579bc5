"""What would happen: the scheduler and the balancer run on a cluster out of a file, in virtual time. Pure.

`yaml_tree` reads text, `cluster_file` and `scenario` check what it says, `world` is the cluster as it changes, `run`
lets events happen to it, `picture` draws it. Nothing here looks at a clock, a host or the network: the same files
give the same result, letter by letter.
"""
