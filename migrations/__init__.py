"""Versioned changes of the database schema; `controlplane.state.migration` runs them.

To add one: change `controlplane.state.schema`, then
`alembic -c migrations/alembic.ini -x url=sqlite:////tmp/draft.db revision --autogenerate --rev-id 0002 -m "..."`
(bring the draft database up to date first with `upgrade head`), write its CHECK constraints by hand, which autogenerate
does not see, and set `schema.REVISION`. One schema change per revision; a released revision is never edited.
"""
