CREATE TABLE board_facts (
    name VARCHAR(40) NOT NULL,
    value VARCHAR(200) NOT NULL,
    PRIMARY KEY (name)
);
CREATE TABLE board_messages (
    sequence INTEGER NOT NULL,
    message_hash VARCHAR(64) NOT NULL,
    study_id VARCHAR(64) NOT NULL,
    round_id INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    purpose VARCHAR(32) NOT NULL,
    kind VARCHAR(40) NOT NULL,
    sender VARCHAR(32) NOT NULL,
    addressee VARCHAR(32) NOT NULL,
    header BLOB NOT NULL,
    signature BLOB NOT NULL,
    payload_sha256 VARCHAR(64) NOT NULL,
    payload_bytes BIGINT NOT NULL,
    received_at_s DOUBLE NOT NULL,
    PRIMARY KEY (sequence),
    CONSTRAINT one_message_per_key UNIQUE (study_id, round_id, attempt, purpose, kind, sender, addressee),
    UNIQUE (message_hash)
);
CREATE INDEX ix_board_messages_sender ON board_messages (sender);
CREATE TABLE board_readers (
    reader VARCHAR(32) NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (reader, sequence),
    FOREIGN KEY(sequence) REFERENCES board_messages (sequence)
);
