"""Runs the migrations on the connection that `fraud_poc.core.database.migrate` hands over, within its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
