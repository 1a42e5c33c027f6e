# ruff: noqa: B018, F821
"""Names that only frameworks, files and guarantees use, so that `vulture` does not call them dead.

Nothing runs this module. A name stands here with who uses it; what nobody uses is removed instead.
"""

# Written to JSON files, whose readers are people and other programs.
_.coordinator_cpu_s
_.computing_s
_.coordinator_peak_bytes
_.epsilon_left
_.key_renewals
_.ledger_head
_.ledger_history
_.measured_in_run
_.messages_down
_.messages_up
_.notes
_.once_down_bytes
_.once_up_bytes
_.resumed_at_step
_.schema_version
_.texts_bytes

# Set for others to read: tokenizers, transformers, jinja2, TenSEAL, mpmath, typer.
_.__doc__
_.decoder
_.generation_config
_.global_scale
_.hf_quantizer
_.is_quantized
_.normalizer
_.post_processor
_.prec
_.pre_tokenizer
_.tags

# Called by Python, by http.server, by prometheus_client, by grpc.
_.__init_subclass__
_.__instancecheck__
_.collect
_.intercept_service
_.time_ns
_.timeout
_.utcnow

# Guarantees and tables of the literature that tests hold the code to.
_.MAX_COEFF_MODULUS_BITS_128
_.MAX_TOTAL_VARIATION

# Named by the parameters of a test: fixtures, and wrong methods that a test finds by name.
_.mean_over_the_tokens_of_the_batch
_.negatives_from_the_batch
_.pairs_clipped_as_rows
_.records_clipped_each
wide_limit

# Fields of documents: written by a name that they are given by, read by programs and templates.
_.rounds_closed
_.plan_sha256
_.epsilon_before
_.study_epsilon_before
_.verified
_.new_to_auditor
_.head_sha256
_.software_version
_.study_epsilon_rdp_after

# Found in a table of classes or by a library: message bodies, enum values, pydantic, jinja2.
EmptyBody
FinishedBody
OpeningKeyBody
PathsBody
TranscriptBody
_._as_written
_._value_
_.globals

# Named by an entry point in pyproject.toml.
ROLE
TEMPLATES

# What sqlite3 reads of a connection.
_.text_factory

# What transformers and bitsandbytes read of a model or layer that a test has packed.
_.is_loaded_in_4bit
_.is_loaded_in_8bit
_.support_avx512bf16_for_cpu

# Called by brackets alone.
_.__getitem__
_.__call__
