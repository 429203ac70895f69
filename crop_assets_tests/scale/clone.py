"""Copies of a year in Dagster's database: as if its partitions had been made for other years, in earlier weeks."""

from dataclasses import dataclass

import sqlalchemy as sa


@dataclass(frozen=True)
class Counts:
    """The size of the database: rows of the event log by type, and bytes of the largest tables with their indexes."""

    events: dict[str, int]
    runs: int
    total_bytes: int
    table_bytes: dict[str, int]

    @property
    def rows(self) -> int:
        return sum(self.events.values())


def version(database: str) -> str:
    with sa.create_engine(database).connect() as connection:
        return str(connection.execute(sa.text("SHOW server_version")).scalar_one()).split()[0]


def count(database: str) -> Counts:
    sizes = """SELECT relname, pg_total_relation_size(relid) FROM pg_catalog.pg_statio_user_tables
        ORDER BY 2 DESC LIMIT 5"""
    with sa.create_engine(database).connect() as connection:
        events = connection.execute(
            sa.text("SELECT coalesce(dagster_event_type, 'log'), count(*) FROM event_logs GROUP BY 1")
        )
        return Counts(
            dict(events.tuples().all()),
            connection.execute(sa.text("SELECT count(*) FROM runs")).scalar_one(),
            connection.execute(sa.text("SELECT pg_database_size(current_database())")).scalar_one(),
            dict(connection.execute(sa.text(sizes)).tuples().all()),
        )


def clone_year(database: str, year: int, other: int, number: int) -> None:
    """Copy all runs, events, tags, checks and backfills of `year` to the year `other`, `number` weeks earlier.

    Dagster's event storage would take some 10 ms per event, an hour per 30,000 partitions.
    """
    engine = sa.create_engine(database)
    with engine.begin() as connection:

        def run(statement: str) -> None:
            connection.execute(sa.text(statement), {"year": str(year), "other": str(other), "number": number})

        # the names of partitions in JSON, also in JSON that is a text in JSON
        for function, names in (("renamed", ("{}|", '"{}"', '\\"{}\\"')), ("tagged", ("{}|",))):
            body = "text"
            for name in names:
                old, new = name.format(year), name.format(other)
                body = f"replace({body}, '{old}', '{new}')"
            if function == "tagged":
                body = f"CASE WHEN text = '{year}' THEN '{other}' ELSE {body} END"
            run(
                f"CREATE FUNCTION pg_temp.{function}(text text) RETURNS text AS $${_sql(body)}$$ LANGUAGE sql"
            )
        run(
            """CREATE TEMP TABLE copied ON COMMIT DROP AS
            SELECT run_id, md5(run_id || :other)::uuid::text AS new_id, backfill_id,
                substr(md5(backfill_id || :other), 1, 8) AS new_backfill
            FROM runs WHERE run_id IN
                (SELECT run_id FROM event_logs WHERE partition = :year OR partition LIKE :year || '|%')"""
        )
        run("CREATE TEMP TABLE span ON COMMIT DROP AS SELECT max(id) AS most FROM event_logs")
        run(
            """INSERT INTO runs (run_id, snapshot_id, pipeline_name, mode, status, run_body, partition, partition_set,
                create_timestamp, update_timestamp, start_time, end_time, backfill_id)
            SELECT new_id, snapshot_id, pipeline_name, mode, status,
                pg_temp.renamed(replace(replace(run_body, run_id, new_id), backfill_id, new_backfill)),
                pg_temp.tagged(partition), partition_set, create_timestamp - :number * interval '7 days',
                update_timestamp - :number * interval '7 days', start_time - :number * 604800,
                end_time - :number * 604800, new_backfill
            FROM runs JOIN copied USING (run_id, backfill_id)"""
        )
        run(
            """INSERT INTO run_tags (run_id, key, value)
            SELECT new_id, key, CASE WHEN value = backfill_id THEN new_backfill ELSE pg_temp.tagged(value) END
            FROM run_tags JOIN copied USING (run_id)"""
        )
        run(
            """INSERT INTO event_logs
                (id, run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
            SELECT id + most, new_id, pg_temp.renamed(replace(event, run_id, new_id)), dagster_event_type,
                timestamp - :number * interval '7 days', step_key, asset_key, pg_temp.tagged(partition)
            FROM event_logs JOIN copied USING (run_id), span"""
        )
        run("SELECT setval(pg_get_serial_sequence('event_logs', 'id'), (SELECT max(id) FROM event_logs))")
        run(
            """INSERT INTO asset_event_tags (event_id, asset_key, key, value, event_timestamp)
            SELECT event_id + most, tags.asset_key, key, pg_temp.tagged(value),
                event_timestamp - :number * interval '7 days'
            FROM asset_event_tags tags JOIN event_logs ON event_logs.id = event_id JOIN copied USING (run_id), span"""
        )
        run(
            """INSERT INTO asset_check_executions (asset_key, check_name, partition, run_id, execution_status,
                evaluation_event, evaluation_event_timestamp, evaluation_event_storage_id,
                materialization_event_storage_id, create_timestamp)
            SELECT asset_key, check_name, pg_temp.tagged(partition), new_id, execution_status,
                pg_temp.renamed(replace(evaluation_event, run_id, new_id)),
                evaluation_event_timestamp - :number * interval '7 days', evaluation_event_storage_id + most,
                materialization_event_storage_id + most, create_timestamp - :number * interval '7 days'
            FROM asset_check_executions JOIN copied USING (run_id), span"""
        )
        run(
            """INSERT INTO bulk_actions (key, status, timestamp, body, action_type, selector_id, job_name)
            SELECT new_backfill, status, timestamp - :number * interval '7 days',
                pg_temp.renamed(replace(body, key, new_backfill)), action_type, selector_id, job_name
            FROM bulk_actions JOIN (SELECT DISTINCT backfill_id, new_backfill FROM copied) c ON key = backfill_id"""
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ANALYZE"))


def _sql(expression: str) -> str:
    return f"SELECT {expression}"
