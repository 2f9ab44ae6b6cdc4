// The configuration: TOML files under <config-dir>/{model,train,infer}/NAME.toml become the structs
// below. One table (config_keys.c) has a row for every key: type, default, bounds, meaning; the
// reading, the checks, docs/config.md and the copy in the run directory follow from it.
#pragma once
#include "base/arena.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct str;

// Fields carry the names of their keys; docs/config.md says what each means. Strings are NULL when
// an optional key is absent; paths are resolved (they can be opened from where the program stands).

struct config_ints {
    int64_t *at;
    size_t count;
};

struct model_config {
    const char *path; // of the TOML, for messages
    const char *model_type;
    int64_t num_cells, vocab_size, embedded_dim, num_heads; // L, V, C, H; H divides C
    int64_t channel_mix_dim_scale;
    double dropout_prob;
    bool with_token_shift, with_deep_embed_att, with_deep_embed_ffn;
    int64_t lora_rank_w, lora_rank_a, lora_rank_v, lora_rank_g; // 0: the official formula's
};

struct train_config {
    struct arena arena; // owns every string below
    const char *path;
    struct model_config model; // what model_cfg names
    const char *model_cfg;

    const char *experiment_log_base_path, *experiment_name;
    const char *run_dir; // derived: <experiment_log_base_path>/<experiment_name>
    const char *init_weights_path;
    int64_t random_seed;

    const char *dataset_base_path, *filename_without_extensions, *dataset_format;
    const char *dataset_prefix; // derived: <dataset_base_path>/<filename_without_extensions>
    const char *validation_base;
    int64_t validation_tokens, val_every_steps;
    const char *tokenizer_vocab_path; // "bytes" is the built-in one

    int64_t num_nodes, num_devices_per_node, batch_size_per_device;
    int64_t num_accumulation_steps_per_device;
    int64_t samples_per_step; // derived: the product of these four
    int64_t context_length, paragraph_length;
    int64_t num_dataset_repeats, num_steps;

    const char *optimizer;
    double learning_rate_start, learning_rate_end;
    int64_t warmup_steps;
    double weight_decay, gradient_clip_val;
    double adam_beta1, adam_beta2, adam_eps, high_lr_scale;
    bool grad_checkpoint, enable_l2wrap;
    int64_t head_chunk_rows;

    const char *backend, *dtype;
    struct config_ints device_ids; // num_devices_per_node of them
    bool shard_optimizer;
    int64_t bucket_bytes;
    int64_t num_threads;

    int64_t save_freq, save_every_steps, keep_checkpoints, keep_every;
    int64_t log_every_steps;
    int64_t sample_every_steps, sample_tokens;
    const char *sample_prompt;
    const char *level;
    bool use_tui;
    bool upload_to_wandb;
    const char *wandb_api_key, *wandb_entity_name, *wandb_project_name;
};

// What follows from the train configuration once the data is known.
struct train_plan {
    int64_t tokens_per_step;      // samples_per_step · context_length
    int64_t exit_tokens;          // training ends before the batch that begins at or past them
    int64_t num_steps;            // optimizer steps of the whole run: ceil(exit / per step)
    int64_t steps_per_mini_epoch; // 40320 samples are a mini-epoch (RWKV-LM train_temp/train.py)
};

struct config_strings {
    const char **at;
    size_t count;
};

struct infer_model {
    struct model_config model; // what model_cfg names
    const char *model_name, *model_cfg, *weights_path, *tokenizer_vocab_path, *dtype;
    const char *state_dtype;
    int64_t device_type;
    struct config_ints device_ids;
    int64_t max_batch_size, paragraph_len, max_context_len;
    bool decode_first;
};

struct infer_config {
    struct arena arena; // owns every string and list below
    const char *path;
    const char *http_bind_addr;
    int64_t request_body_limit_bytes, sse_keep_alive_ms;
    struct config_strings allowed_origins; // none given: every origin
    const char *api_key, *admin_api_key;
    const char *backend;
    int64_t num_threads, max_queue, max_connections, state_cache_bytes;
    int64_t header_timeout_ms, body_timeout_ms, idle_timeout_ms, stall_timeout_ms, drain_timeout_ms;
    const char *state_dir, *tls_cert, *tls_key;
    bool ipc_enabled, ipc_require_api_key;
    const char *ipc_service_name;
    int64_t ipc_max_request_bytes, ipc_max_response_bytes, ipc_max_inflight_requests;
    struct infer_model *models;
    size_t num_models; // at least 1
};

// `name` has no ".toml". `sets` are "key=value" overrides of --set; the value is TOML, and a bare
// word is a string; "model.KEY" reaches into the model's configuration; a relative path in one is
// relative to where the program stands, in a file to that file's folder. Errors are E_CONFIG and
// begin with "file:line:column:" or "--set KEY:". *_free is needed only on success, and harmless
// after a failure.
int train_config_load(struct train_config *out, const char *config_dir, const char *name,
                      const char *const sets[], size_t num_sets, struct error *err);
void train_config_free(struct train_config *c);

int infer_config_load(struct infer_config *out, const char *config_dir, const char *name,
                      const char *const sets[], size_t num_sets, struct error *err);
// The same of a text that stands, or is about to stand, at `path`; neither is needed afterwards.
int infer_config_parse(struct infer_config *out, const char *config_dir, const char *path,
                       const char *text, size_t len, const char *const sets[], size_t num_sets,
                       struct error *err);
// That in two steps, for texts whose paths somebody else chose: what is wrong with a file is told
// with words out of it, so where the files are is checked before they are opened. After _outline
// every path is known (model_cfg absolute) and no file but the text's was read; _shapes fills each
// models[i].model. After a failure of _shapes *_free is still needed.
int infer_config_outline(struct infer_config *out, const char *config_dir, const char *path,
                         const char *text, size_t len, const char *const sets[], size_t num_sets,
                         struct error *err);
int infer_config_shapes(struct infer_config *c, struct error *err);
void infer_config_free(struct infer_config *c);

// The model's file alone; its strings go to `arena`. Here `sets` have no "model." before the key.
int model_config_load(struct model_config *out, struct arena *arena, const char *path,
                      const char *const sets[], size_t num_sets, struct error *err);

// `dataset_tokens`: of the training data. E_CONFIG when there is nothing to train for.
int train_config_plan(struct train_plan *out, const struct train_config *c, int64_t dataset_tokens,
                      struct error *err);

// Appends a TOML text with every key as it was resolved: paths absolute, secrets left out. It reads
// back as the same configuration.
void train_config_write(struct str *out, const struct train_config *c);
void model_config_write(struct str *out, const struct model_config *c);
void infer_config_write(struct str *out, const struct infer_config *c);

// Appends docs/config.md.
void config_write_docs(struct str *out);
