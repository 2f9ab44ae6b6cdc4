// Every configuration key, one row each. Names, aliases and defaults follow rwkv-rs, so that its
// files work here; where a default differs, the row says why.
#include "config.h"
#include "config_table.h"

#include "backend/backend.h"

#define MODEL(field)  offsetof(struct model_config, field)
#define TRAIN(field)  offsetof(struct train_config, field)
#define INFER(field)  offsetof(struct infer_config, field)
#define SERVED(field) offsetof(struct infer_model, field)

static const struct config_key model_keys[] = {
    {"model_type", CONFIG_STRING, MODEL(model_type), "\"auto_regressive\"",
     .choices = "auto_regressive|sequence_embedding", .later = "a model without a language head",
     .doc = "What the model computes: the next token"},
    {"num_cells", CONFIG_INT, MODEL(num_cells), .required = true, .min = 1, .max = 1024,
     .doc = "Layers (L)"},
    {"vocab_size", CONFIG_INT, MODEL(vocab_size), .required = true, .min = 2, .max = 65536,
     .doc = "Token ids (V): 65536 for the World vocabulary, 257 for the built-in bytes"},
    {"embedded_dim", CONFIG_INT, MODEL(embedded_dim), .required = true, .min = 1, .max = 65536,
     .doc = "Width of a token's vector (C)"},
    {"num_heads", CONFIG_INT, MODEL(num_heads), .required = true, .min = 1, .max = 65536,
     .doc = "Heads (H); must divide embedded_dim. Official models have heads of 64"},
    {"channel_mix_dim_scale", CONFIG_INT, MODEL(channel_mix_dim_scale), "4", .min = 1, .max = 64,
     .later = "a channel mix of another width", .doc = "Width of the channel mix, in embedded_dim"},
    {"dropout_prob", CONFIG_FLOAT, MODEL(dropout_prob), "0.0", .min = 0, .max = 1,
     .later = "dropout", .doc = "Share of activations dropped in training"},
    {"with_token_shift", CONFIG_BOOL, MODEL(with_token_shift), "true",
     .later = "a model without token shift", .doc = "Mix each token with the one before it"},
    {"with_deep_embed_att", CONFIG_BOOL, MODEL(with_deep_embed_att), "false", .later = "DeepEmbed",
     .doc = "Token embeddings inside the time mix"},
    {"with_deep_embed_ffn", CONFIG_BOOL, MODEL(with_deep_embed_ffn), "false", .later = "DeepEmbed",
     .doc = "Token embeddings inside the channel mix"},
    {"lora_rank_w", CONFIG_INT, MODEL(lora_rank_w), "0", .min = 0, .max = 65536,
     .doc = "Rank of the decay's low-rank matrices in a new model; 0: the official formula's. "
            "Existing weights bring their own"},
    {"lora_rank_a", CONFIG_INT, MODEL(lora_rank_a), "0", .min = 0, .max = 65536,
     .doc = "The same for the in-context learning rate"},
    {"lora_rank_v", CONFIG_INT, MODEL(lora_rank_v), "0", .min = 0, .max = 65536,
     .doc = "The same for the value residual"},
    {"lora_rank_g", CONFIG_INT, MODEL(lora_rank_g), "0", .min = 0, .max = 65536,
     .doc = "The same for the gate"},
    {0},
};

static const struct config_key train_keys[] = {
    {"model_cfg", CONFIG_STRING, TRAIN(model_cfg), .required = true, .alias = "model_cfg_path",
     .doc =
         "The model: a name in `<config-dir>/model` without .toml, or a path with a slash in it"},
    {"experiment_log_base_path", CONFIG_PATH, TRAIN(experiment_log_base_path), "\"logs\"",
     .doc = "Folder of the runs"},
    {"experiment_name", CONFIG_STRING, TRAIN(experiment_name), .required = true,
     .doc = "Folder of this run inside it: checkpoints, log.jsonl, loss.svg"},
    {"init_weights_path", CONFIG_PATH, TRAIN(init_weights_path), .alias = "record_path",
     .doc = "Start from these weights (.pth, .safetensors or .gguf) instead of the official "
            "initialisation"},
    {"random_seed", CONFIG_INT, TRAIN(random_seed), "42", .min = 0, .max = 9.3e18, .alias = "seed",
     .doc = "Seed of the initialisation and of samples. The order of the data has none"},

    {"dataset_base_path", CONFIG_PATH, TRAIN(dataset_base_path), .required = true,
     .doc = "Folder of the training data"},
    {"filename_without_extensions", CONFIG_STRING, TRAIN(filename_without_extensions),
     .required = true, .doc = "Name of its .bin and .idx, without the ending"},
    // rwkv-rs's default names its own format, whose data begins at an odd byte and cannot be
    // trained on there either.
    {"dataset_format", CONFIG_STRING, TRAIN(dataset_format), "\"rwkv_legacy\"",
     .choices = "rwkv|rwkv_legacy", .later = "the RWKVBIN format",
     .doc = "rwkv_legacy: the binidx files of RWKV-LM"},
    {"tokenizer_vocab_path", CONFIG_PATH, TRAIN(tokenizer_vocab_path), .builtin = "bytes",
     .doc = "The data's vocabulary, for samples and bits per byte; \"bytes\" is built in"},
    {"validation_base", CONFIG_PATH, TRAIN(validation_base),
     .doc = "Held-out data: the path of its .bin and .idx without the ending"},
    {"validation_tokens", CONFIG_INT, TRAIN(validation_tokens), "0", .min = 0, .max = 1e15,
     .doc = "How many of its tokens a validation reads, from the start; 0: all"},
    {"val_every_steps", CONFIG_INT, TRAIN(val_every_steps), "0", .min = 0, .max = 1e12,
     .doc = "Steps between validations; 0: one at the end"},

    {"num_nodes", CONFIG_INT, TRAIN(num_nodes), "1", .min = 1, .max = 4096,
     .later = "training on several machines", .doc = "Machines that train together"},
    {"num_devices_per_node", CONFIG_INT, TRAIN(num_devices_per_node), "1", .min = 1, .max = 64,
     .doc = "Devices of each machine, a process each; with the CPU, processes that share its "
            "cores. Where only device_ids is set: as many as it names"},
    {"batch_size_per_device", CONFIG_INT, TRAIN(batch_size_per_device), "1", .min = 1, .max = 40320,
     .doc = "Samples that a device computes at once"},
    {"num_accumulation_steps_per_device", CONFIG_INT, TRAIN(num_accumulation_steps_per_device), "1",
     .min = 1, .max = 40320,
     .doc = "Batches whose gradients are summed before the optimizer steps"},
    {"context_length", CONFIG_INT, TRAIN(context_length), "512", .min = 1, .max = 1 << 20,
     .alias = "context_len", .doc = "Tokens of a sample (T)"},
    {"paragraph_length", CONFIG_INT, TRAIN(paragraph_length), "512", .min = 1, .max = 1 << 20,
     .later = "the statepass mode",
     .doc = "Tokens between which statepass cuts the gradient; pretraining has no use for it"},
    // rwkv-rs has no default and fails without the key.
    {"num_dataset_repeats", CONFIG_INT, TRAIN(num_dataset_repeats), "1", .min = 1, .max = 1e6,
     .doc = "How often the data's number of tokens is trained on in all"},
    {"num_steps", CONFIG_INT, TRAIN(num_steps), "0", .min = 0, .max = 1e12,
     .doc = "Optimizer steps of the whole run; 0: as num_dataset_repeats says"},

    {"optimizer", CONFIG_STRING, TRAIN(optimizer), "\"adam_w\"", .choices = "adam_w",
     .doc = "AdamW"},
    {"learning_rate_start", CONFIG_FLOAT, TRAIN(learning_rate_start), .required = true, .min = 0,
     .max = 1, .doc = "Learning rate after the warm-up"},
    {"learning_rate_end", CONFIG_FLOAT, TRAIN(learning_rate_end), .required = true, .min = 0,
     .max = 1, .doc = "Learning rate at the end of its cosine"},
    {"warmup_steps", CONFIG_INT, TRAIN(warmup_steps), .required = true, .min = 0, .max = 1e9,
     .doc = "Steps in which the learning rate rises from a hundredth"},
    {"weight_decay", CONFIG_FLOAT, TRAIN(weight_decay), "1e-3", .min = 0, .max = 1,
     .doc = "Decay of the matrices, times the learning rate"},
    {"gradient_clip_val", CONFIG_FLOAT, TRAIN(gradient_clip_val), "1.0", .min = 0, .max = 1e9,
     .doc = "The gradient's norm over all parameters is cut to this; 0: never"},
    {"adam_beta1", CONFIG_FLOAT, TRAIN(adam_beta1), "0.9", .min = 0, .max = 0.999999,
     .doc = "Decay of the first moment"},
    {"adam_beta2", CONFIG_FLOAT, TRAIN(adam_beta2), "0.99", .min = 0, .max = 0.999999,
     .doc = "Decay of the second moment"},
    {"adam_eps", CONFIG_FLOAT, TRAIN(adam_eps), "1e-18", .min = 0, .max = 1,
     .doc = "Added to the root of the second moment"},
    {"high_lr_scale", CONFIG_FLOAT, TRAIN(high_lr_scale), "2.0", .min = 0, .max = 1000,
     .doc = "Factor on the learning rate of att.w0, the decay's bias"},
    {"enable_l2wrap", CONFIG_BOOL, TRAIN(enable_l2wrap), "true",
     .doc = "Pull the largest logit of each row gently towards 0 (L2Wrap)"},
    {"grad_checkpoint", CONFIG_BOOL, TRAIN(grad_checkpoint), "true",
     .doc = "Compute each layer again in the backward pass instead of keeping its values: less "
            "memory, a third more time"},
    {"head_chunk_rows", CONFIG_INT, TRAIN(head_chunk_rows), "0", .min = 0, .max = 1 << 20,
     .doc = "Rows of logits that exist at once; 0: what the backend likes (cpu 256, cuda 4096)"},

    {"backend", CONFIG_STRING, TRAIN(backend), "\"cpu\"", .choices = "cpu|cuda|wgpu|metal",
     .doc = "What computes; `cuda` is in builds made with `make CUDA=1`"},
    {"device_ids", CONFIG_INTS, TRAIN(device_ids), "[0]", .min = 0, .max = 255,
     .doc = "The devices that train, counted from 0; the CPU is any of them. Where only "
            "num_devices_per_node is set: the first ones"},
    {"shard_optimizer", CONFIG_BOOL, TRAIN(shard_optimizer), "true",
     .doc = "Of several devices each keeps and updates its share of the optimizer's moments "
            "(ZeRO-1); false: all of them"},
    {"bucket_bytes", CONFIG_INT, TRAIN(bucket_bytes), "33554432", .min = 4096, .max = 1 << 30,
     .doc = "Gradients that several devices sum up at once, while the next ones are computed"},
    {"dtype", CONFIG_STRING, TRAIN(dtype), "\"f32\"", .choices = "f32|bf16|bf16w",
     .doc =
         "What the matrix products multiply: `bf16` rounds weights, activations and gradients in "
         "front of them, `bf16w` the weights only; master weights, sums and states are f32"},
    {"num_threads", CONFIG_INT, TRAIN(num_threads), "0", .min = 0, .max = 1024,
     .doc = "Threads of the CPU backend, of each process; 0: one a core in all. The result doesn't "
            "depend on it"},

    {"save_freq", CONFIG_INT, TRAIN(save_freq), "1", .min = 0, .max = 1e9,
     .doc = "Mini-epochs (40320 samples) between checkpoints; 0: none by mini-epoch"},
    {"save_every_steps", CONFIG_INT, TRAIN(save_every_steps), "0", .min = 0, .max = 1e12,
     .doc = "Steps between checkpoints, besides save_freq; 0: none by steps"},
    {"keep_checkpoints", CONFIG_INT, TRAIN(keep_checkpoints), "2", .min = 1, .max = 1e6,
     .doc = "How many of the last checkpoints are kept"},
    {"keep_every", CONFIG_INT, TRAIN(keep_every), "0", .min = 0, .max = 1e6,
     .doc = "Besides them, every n-th checkpoint is kept for good; 0: none"},
    {"log_every_steps", CONFIG_INT, TRAIN(log_every_steps), "1", .min = 1, .max = 1e9,
     .doc = "Steps between lines of log.jsonl"},
    {"sample_every_steps", CONFIG_INT, TRAIN(sample_every_steps), "0", .min = 0, .max = 1e12,
     .doc = "Steps between sample texts; 0: none"},
    {"sample_prompt", CONFIG_STRING, TRAIN(sample_prompt), "\"\"",
     .doc = "What a sample text continues; empty: the end of a document"},
    {"sample_tokens", CONFIG_INT, TRAIN(sample_tokens), "100", .min = 1, .max = 65536,
     .doc = "Tokens of a sample text"},
    {"level", CONFIG_STRING, TRAIN(level), "\"info\"", .choices = "debug|info|warn|error",
     .doc = "Messages below this level are not printed; progress always is"},
    {"use_tui", CONFIG_BOOL, TRAIN(use_tui), "true",
     .doc = "On a terminal, redraw one line of progress; false: print plain lines"},
    {"upload_to_wandb", CONFIG_BOOL, TRAIN(upload_to_wandb), "false",
     .later = "uploading to Weights & Biases", .doc = "Send the log to Weights & Biases"},
    {"wandb_api_key", CONFIG_STRING, TRAIN(wandb_api_key), .secret = true,
     .later = "uploading to Weights & Biases", .doc = "Its key"},
    {"wandb_entity_name", CONFIG_STRING, TRAIN(wandb_entity_name),
     .later = "uploading to Weights & Biases", .doc = "Its entity"},
    {"wandb_project_name", CONFIG_STRING, TRAIN(wandb_project_name),
     .later = "uploading to Weights & Biases", .doc = "Its project"},
    {0},
};

static const char states[] = "states that outlive a request", tls[] = "TLS";

static const struct config_key infer_keys[] = {
    // rwkv-rs listens on every address by default, without a key.
    {"http_bind_addr", CONFIG_STRING, INFER(http_bind_addr), "\"127.0.0.1:8080\"",
     .doc = "Address and port to listen on"},
    {"request_body_limit_bytes", CONFIG_INT, INFER(request_body_limit_bytes), "52428800",
     .min = 1024, .max = 1 << 30, .doc = "Largest request body; a larger one is answered with 413"},
    {"sse_keep_alive_ms", CONFIG_INT, INFER(sse_keep_alive_ms), "10000", .min = 100, .max = 3.6e6,
     .doc = "Pause after which a stream gets a comment, so that nobody closes it"},
    {"allowed_origins", CONFIG_STRINGS, INFER(allowed_origins),
     .doc = "Origins that browsers may call from; absent: all"},
    {"api_key", CONFIG_STRING, INFER(api_key), .secret = true,
     .doc = "Key that requests must bring; absent: none"},
    {"admin_api_key", CONFIG_STRING, INFER(admin_api_key), .secret = true,
     .doc = "Key of /admin; absent: api_key"},
    {"backend", CONFIG_STRING, INFER(backend), "\"cpu\"", .choices = "cpu|cuda|wgpu|metal",
     .doc = "What computes; `cuda` is in builds made with `make CUDA=1`"},
    {"num_threads", CONFIG_INT, INFER(num_threads), "0", .min = 0, .max = 1024,
     .doc = "Threads of the CPU backend; 0: one a core"},
    {"max_queue", CONFIG_INT, INFER(max_queue), "256", .min = 1, .max = 1e6,
     .doc = "Requests that may wait for a model; one more is answered with 429"},
    {"max_connections", CONFIG_INT, INFER(max_connections), "16384", .min = 1, .max = 1e6,
     .doc = "Connections at once; one more is closed. The limit of open files bounds it too"},
    {"header_timeout_ms", CONFIG_INT, INFER(header_timeout_ms), "10000", .min = 10, .max = 3.6e6,
     .doc = "For a request's head, from its first byte; then it is answered with 408"},
    {"body_timeout_ms", CONFIG_INT, INFER(body_timeout_ms), "30000", .min = 10, .max = 3.6e6,
     .doc = "For a request's body, from the end of its head"},
    {"idle_timeout_ms", CONFIG_INT, INFER(idle_timeout_ms), "75000", .min = 10, .max = 8.64e7,
     .doc = "For the next request on an open connection"},
    {"stall_timeout_ms", CONFIG_INT, INFER(stall_timeout_ms), "30000", .min = 10, .max = 3.6e6,
     .doc = "A reader that takes nothing for so long counts as gone"},
    {"drain_timeout_ms", CONFIG_INT, INFER(drain_timeout_ms), "30000", .min = 0, .max = 3.6e6,
     .doc = "For answers in flight when the server is told to stop"},
    {"state_cache_bytes", CONFIG_INT, INFER(state_cache_bytes), "0", .min = 0, .max = 1e15,
     .later = states, .doc = "Memory for the states of prompts seen before; 0: none"},
    {"state_dir", CONFIG_PATH, INFER(state_dir), .later = states,
     .doc = "Folder that states are kept in over a restart"},
    {"tls_cert", CONFIG_PATH, INFER(tls_cert), .later = tls, .doc = "Certificate chain (PEM)"},
    {"tls_key", CONFIG_PATH, INFER(tls_key), .later = tls, .doc = "Its private key (PEM)"},
    {"ipc.enabled", CONFIG_BOOL, INFER(ipc_enabled), "false", .later = "shared-memory IPC",
     .doc = "Serve over shared memory too"},
    {"ipc.service_name", CONFIG_STRING, INFER(ipc_service_name), "\"rwkv.infer.openai\"",
     .later = "shared-memory IPC", .doc = "Its name"},
    {"ipc.max_request_bytes", CONFIG_INT, INFER(ipc_max_request_bytes), "4194304", .min = 1,
     .max = 1 << 30, .later = "shared-memory IPC", .doc = "Largest request"},
    {"ipc.max_response_bytes", CONFIG_INT, INFER(ipc_max_response_bytes), "4194304", .min = 1,
     .max = 1 << 30, .later = "shared-memory IPC", .doc = "Largest response"},
    {"ipc.max_inflight_requests", CONFIG_INT, INFER(ipc_max_inflight_requests), "128", .min = 1,
     .max = 1e6, .later = "shared-memory IPC", .doc = "Requests at once"},
    {"ipc.require_api_key", CONFIG_BOOL, INFER(ipc_require_api_key), "true",
     .later = "shared-memory IPC", .doc = "Whether requests must bring api_key"},
    {"models", CONFIG_TABLES, INFER(models), .required = true, .reloadable = true,
     .doc = "The models to serve: one table [[models]] each, see below"},
    {0},
};

static const struct config_key infer_model_keys[] = {
    {"model_name", CONFIG_STRING, SERVED(model_name), .required = true, .reloadable = true,
     .doc = "What requests call it"},
    {"model_cfg", CONFIG_STRING, SERVED(model_cfg), .required = true, .alias = "model_cfg_path",
     .reloadable = true,
     .doc =
         "Its shape: a name in `<config-dir>/model` without .toml, or a path with a slash in it"},
    {"weights_path", CONFIG_PATH, SERVED(weights_path), .required = true, .reloadable = true,
     .doc = "Its weights"},
    {"tokenizer_vocab_path", CONFIG_PATH, SERVED(tokenizer_vocab_path), .required = true,
     .builtin = "bytes", .reloadable = true, .doc = "Its vocabulary; \"bytes\" is built in"},
    {"dtype", CONFIG_STRING, SERVED(dtype), "\"f32\"", .choices = PRECISION_NAMES,
     .reloadable = true,
     .doc = "How the matrices are stored and multiplied: `bf16` rounds weights and inputs, `bf16w` "
            "the weights only; `int8` and `int4` work with integers in groups that have a scale"},
    {"state_dtype", CONFIG_STRING, SERVED(state_dtype), "\"f32\"", .choices = "f32|f16",
     .reloadable = true,
     .doc =
         "How the states of sequences are stored: `f16` takes half of the memory and of the time "
         "that large batches spend on them, and rounds them after each step; CUDA only"},
    {"device_type", CONFIG_INT, SERVED(device_type), "0", .min = 0, .max = 4,
     .later = "the GPU backends", .reloadable = true,
     .doc = "Kind of WebGPU device: 0 discrete, 1 integrated, 2 virtual, 3 CPU, 4 default"},
    {"device_ids", CONFIG_INTS, SERVED(device_ids), "[0]", .min = 0, .max = 255, .reloadable = true,
     .doc = "Devices, counted from 0, that get a whole copy of the model each; the CPU is any of "
            "them"},
    {"max_batch_size", CONFIG_INT, SERVED(max_batch_size), "4", .min = 1, .max = 65536,
     .reloadable = true, .doc = "Sequences at once"},
    {"paragraph_len", CONFIG_INT, SERVED(paragraph_len), "0", .min = 0, .max = 1 << 20,
     .reloadable = true,
     .doc = "Tokens of prompts computed in one step; 0: as the backend likes, 256 on the CPU, 1024 "
            "on a GPU"},
    {"max_context_len", CONFIG_INT, SERVED(max_context_len), "4096", .min = 1, .max = 1e9,
     .reloadable = true, .doc = "Longest prompt and continuation together"},
    {"decode_first", CONFIG_BOOL, SERVED(decode_first), "true", .reloadable = true,
     .doc = "Sequences that write go before prompts that wait"},
    {0},
};

const struct config_section config_model = {
    "model", "`<config-dir>/model/NAME.toml`",
    "The shape of a model. The six official sizes are shipped.", model_keys,
    sizeof(struct model_config)};

const struct config_section config_train = {
    "train", "`<config-dir>/train/NAME.toml`",
    "A training run, `rwkv train --train-cfg NAME`. A relative path is relative to this file's "
    "folder. The run ends after `num_steps`, or once it has seen `num_dataset_repeats` times as "
    "many tokens as the data has. One step takes `num_nodes` × `num_devices_per_node` × "
    "`batch_size_per_device` × `num_accumulation_steps_per_device` samples; the product must "
    "divide 40320, the samples of a mini-epoch.",
    train_keys, sizeof(struct train_config)};

const struct config_section config_infer = {
    "infer", "`<config-dir>/infer/NAME.toml`",
    "What to serve, and how. A relative path is relative to this file's folder.", infer_keys,
    sizeof(struct infer_config)};

const struct config_section config_infer_model = {
    "infer [[models]]", "Each table `[[models]]` of `<config-dir>/infer/NAME.toml`",
    "One model that is served. A hot reload applies every key of it.", infer_model_keys,
    sizeof(struct infer_model)};
