#include "serve/request.h"

#include "base/error.h"
#include "base/json.h"
#include "base/str.h"
#include "serve/fault.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The object being read. After the first fault nothing else is said.
struct reader {
    const struct json *object;
    struct request *out;
    struct fault *fault;
};

#define bad(param, ...) fault_set(r->fault, 400, NULL, param, __VA_ARGS__)

// A member that is there and not null.
static const struct json *member(const struct json *object, const char *name) {
    const struct json *v = json_member(object, name);
    return v && json_kind(v) != JSON_KIND_NULL ? v : NULL;
}

// ---- one field each ----------------------------------------------------------------------------

// Numbers, all of them: nothing else reads one from a request.
static const struct number {
    const char *name;
    double min, max;
    size_t offset;
    bool is_int;
} numbers[] = {
    {"temperature", 0, 1000, offsetof(struct request, temperature), false},
    {"top_p", 0, 1, offsetof(struct request, top_p), false},
    {"min_p", 0, 1, offsetof(struct request, min_p), false},
    {"top_k", 0, INT32_MAX, offsetof(struct request, top_k), true},
    {"presence_penalty", -100, 100, offsetof(struct request, presence), false},
    {"frequency_penalty", -100, 100, offsetof(struct request, frequency), false},
    {"repetition_penalty", -100, 100, offsetof(struct request, repetition), false},
    {"penalty_decay", 0, 1, offsetof(struct request, penalty_decay), false},
    {"max_tokens", 0, INT32_MAX, offsetof(struct request, max_tokens), true},
    {"max_completion_tokens", 1, INT32_MAX, offsetof(struct request, max_tokens), true},
    {"seed", -9223372036854775807.0, 9223372036854775807.0, offsetof(struct request, seed), true},
};

static int read_number(struct reader *r, const struct number *n) {
    const struct json *v = member(r->object, n->name);
    struct error err;
    if (!v) return 0;
    void *at = (char *)r->out + n->offset;
    const bool whole = n->offset == offsetof(struct request, seed);
    const int64_t min = whole ? INT64_MIN : (int64_t)n->min,
                  max = whole ? INT64_MAX : (int64_t)n->max;
    const int rc = n->is_int ? json_read_int(at, v, min, max, n->name, &err)
                             : json_read_float(at, v, n->min, n->max, n->name, &err);
    return rc ? bad(n->name, "%s", err.msg) : 0;
}

static int read_numbers(struct reader *r) {
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (read_number(r, &numbers[i])) return -1;
    r->out->has_seed = member(r->object, "seed") != NULL;
    if (r->out->max_tokens == 0 && !r->out->echo)
        return bad("max_tokens", "max_tokens is 0, wanted 1 or more (0 goes with echo only)");
    return 0;
}

static int read_bool(struct reader *r, const struct json *object, const char *name, bool *out) {
    const struct json *v = member(object, name);
    struct error err;
    if (v && json_read_bool(out, v, name, &err)) return bad(name, "%s", err.msg);
    return 0;
}

static const char *copy_text(struct reader *r, const struct json *v, const char *name, size_t max,
                             size_t *len) {
    const char *text;
    size_t n;
    struct error err;
    if (json_read_text(&text, &n, v, name, &err)) {
        fault_set(r->fault, 400, NULL, name, "%s", err.msg);
        return NULL;
    }
    if (n > max) {
        fault_set(r->fault, 400, NULL, name, "%s has %zu bytes, at most %zu are taken", name, n,
                  max);
        return NULL;
    }
    if (len) *len = n;
    return arena_copy(&r->out->arena, text, n);
}

// Fields that belong to what is not offered. `neutral`: values that ask for nothing.
static int refuse_absent(struct reader *r) {
    static const char *const names[] = {
        "tools",
        "tool_choice",
        "functions",
        "function_call",
        "guided_regex",
        "guided_json",
        "guided_choice",
        "guided_grammar",
        "state",
        "return_state",
        "suffix",
        "best_of",
        "n",
        "response_format",
        "audio",
        "modalities",
        "previous_response_id",
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const struct json *v = member(r->object, names[i]);
        const enum json_kind kind = v ? json_kind(v) : JSON_KIND_NULL;
        int64_t one = 0;
        bool flag = true;
        const char *text = "";
        size_t len = 0;
        if (!v || (kind == JSON_KIND_ARRAY && !json_length(v))) continue;
        if (kind == JSON_KIND_INT && !json_read_int(&one, v, 1, 1, "", NULL) &&
            str_among("n|best_of", names[i]))
            continue;
        if (kind == JSON_KIND_BOOL && !json_read_bool(&flag, v, "", NULL) && !flag) continue;
        if (kind == JSON_KIND_TEXT && !json_read_text(&text, &len, v, "", NULL) &&
            (!strcmp(text, "none") || !strcmp(text, "auto")) && str_among("tool_choice", names[i]))
            continue;
        if (kind == JSON_KIND_TEXT && !len && !strcmp(names[i], "suffix")) continue;
        if (kind == JSON_KIND_OBJECT && !strcmp(names[i], "response_format") && member(v, "type") &&
            !json_read_text(&text, &len, member(v, "type"), "", NULL) && !strcmp(text, "text"))
            continue;
        return bad(names[i], "%s is not supported by this server", names[i]);
    }
    return 0;
}

static int add_stop(struct reader *r, const struct json *v) {
    struct request *out = r->out;
    size_t len;
    if (out->num_stops == REQUEST_MAX_STOPS)
        return bad("stop", "stop has more than %d strings", REQUEST_MAX_STOPS);
    const char *text = copy_text(r, v, "stop", ENGINE_MAX_STOP_BYTES, &len);
    if (!text) return -1;
    if (!len || strlen(text) != len)
        return bad("stop", "a stop string cannot be empty or hold a NUL byte");
    out->stops[out->num_stops++] = text;
    return 0;
}

static int read_stops(struct reader *r) {
    const struct json *v = member(r->object, "stop");
    if (!v) return 0;
    if (json_kind(v) == JSON_KIND_TEXT) return add_stop(r, v);
    if (json_kind(v) != JSON_KIND_ARRAY)
        return bad("stop", "stop is neither a string nor an array of strings");
    for (size_t i = 0; i < json_length(v); i++)
        if (add_stop(r, json_item(v, i))) return -1;
    return 0;
}

static int read_bias(struct reader *r) {
    const struct json *v = member(r->object, "logit_bias"), *value;
    struct request *out = r->out;
    struct error err;
    const char *key;
    if (!v) return 0;
    if (json_kind(v) != JSON_KIND_OBJECT) return bad("logit_bias", "logit_bias is not an object");
    if (json_length(v) > ENGINE_MAX_BIAS)
        return bad("logit_bias", "logit_bias has %zu entries, at most %d are taken", json_length(v),
                   ENGINE_MAX_BIAS);
    out->bias = arena_alloc(&out->arena, (json_length(v) + 1) * sizeof *out->bias);
    for (void *at = NULL; json_next(v, &at, &key, &value);) {
        char *end;
        double add;
        const long id = strtol(key, &end, 10);
        if (*key < '0' || *key > '9' || (*key == '0' && key[1]) || *end || id > INT32_MAX)
            return bad("logit_bias", "logit_bias has the key \"%.40s\", wanted a token's id", key);
        if (json_read_float(&add, value, -100, 100, "a logit_bias", &err))
            return bad("logit_bias", "%s", err.msg);
        out->bias[out->num_bias++] = (struct engine_bias){(int32_t)id, (float)add};
    }
    return 0;
}

// chat: logprobs true, top_logprobs 0..20. completions: logprobs 0..20.
static int read_logprobs(struct reader *r) {
    const struct json *v = member(r->object, "logprobs");
    const struct json *top = member(r->object, "top_logprobs");
    const struct json *texts = member(r->object, "candidate_token_texts");
    struct request *out = r->out;
    struct error err;
    int64_t n = 0;
    bool on = false;
    if (out->kind == REQUEST_CHAT) {
        if (v && json_read_bool(&on, v, "logprobs", &err)) return bad("logprobs", "%s", err.msg);
        if (top && json_read_int(&n, top, 0, ENGINE_MAX_TOP, "top_logprobs", &err))
            return bad("top_logprobs", "%s", err.msg);
        if (top && !on) return bad("top_logprobs", "top_logprobs goes with logprobs true");
    } else if (v) {
        if (json_read_int(&n, v, 0, ENGINE_MAX_TOP, "logprobs", &err))
            return bad("logprobs", "%s", err.msg);
        on = true;
    }
    out->top = on ? (int)n : -1;
    if (!texts) return 0;
    if (json_kind(texts) != JSON_KIND_ARRAY || json_length(texts) > ENGINE_MAX_CANDIDATES)
        return bad("candidate_token_texts", "wanted an array of at most %d strings",
                   ENGINE_MAX_CANDIDATES);
    if (!on) return bad("candidate_token_texts", "candidate_token_texts goes with logprobs");
    out->candidates = arena_alloc(&out->arena, (json_length(texts) + 1) * sizeof *out->candidates);
    for (size_t i = 0; i < json_length(texts); i++) {
        const char *text = copy_text(r, json_item(texts, i), "candidate_token_texts", 1024, NULL);
        if (!text) return -1;
        out->candidates[out->num_candidates++] = text;
    }
    return 0;
}

static int read_stream(struct reader *r) {
    const struct json *v = member(r->object, "stream_options");
    if (read_bool(r, r->object, "stream", &r->out->stream)) return -1;
    if (!v) return 0;
    if (json_kind(v) != JSON_KIND_OBJECT)
        return bad("stream_options", "stream_options is not an object");
    return read_bool(r, v, "include_usage", &r->out->include_usage);
}

// ---- prompts -----------------------------------------------------------------------------------

static int read_tokens(struct reader *r, const struct json *list, struct request_prompt *out) {
    const size_t n = json_length(list);
    struct error err;
    if (!n) return bad("prompt", "a prompt of token ids cannot be empty");
    out->tokens = arena_alloc(&r->out->arena, n * sizeof *out->tokens);
    out->num_tokens = (int)n;
    for (size_t i = 0; i < n; i++) {
        int64_t id;
        if (json_read_int(&id, json_item(list, i), 0, INT32_MAX, "a token id of prompt", &err))
            return bad("prompt", "%s", err.msg);
        out->tokens[i] = (int32_t)id;
    }
    return 0;
}

static int read_prompt(struct reader *r, const struct json *v, struct request_prompt *out) {
    if (json_kind(v) == JSON_KIND_ARRAY) return read_tokens(r, v, out);
    out->text = copy_text(r, v, "prompt", SIZE_MAX / 2, &out->len);
    return out->text ? 0 : -1;
}

static int read_prompts(struct reader *r) {
    struct request *out = r->out;
    const struct json *v = member(r->object, "prompt");
    if (!v) return bad("prompt", "prompt is missing");
    const bool list = json_kind(v) == JSON_KIND_ARRAY;
    const bool many = list && json_length(v) && json_kind(json_item(v, 0)) != JSON_KIND_INT;
    const size_t n = many ? json_length(v) : 1;
    if (n > REQUEST_MAX_PROMPTS)
        return bad("prompt", "prompt has %zu entries, at most %d are taken", n,
                   REQUEST_MAX_PROMPTS);
    out->prompts = arena_alloc(&out->arena, n * sizeof *out->prompts);
    out->num_prompts = n;
    for (size_t i = 0; i < n; i++)
        if (read_prompt(r, many ? json_item(v, i) : v, &out->prompts[i])) return -1;
    return 0;
}

// Text of a message: a string, or parts of text one after the other.
static int read_content(struct reader *r, const struct json *v, size_t index, struct str *out) {
    char name[40];
    const char *text;
    size_t len;
    struct error err;
    snprintf(name, sizeof name, "messages[%zu].content", index);
    if (json_kind(v) == JSON_KIND_TEXT) {
        json_read_text(&text, &len, v, name, NULL);
        return str_append(out, text, len);
    }
    if (json_kind(v) != JSON_KIND_ARRAY)
        return bad(name, "%s is neither a string nor an array of parts", name);
    for (size_t i = 0; i < json_length(v); i++) {
        const struct json *part = json_item(v, i), *type, *body;
        if (json_kind(part) != JSON_KIND_OBJECT)
            return bad(name, "%s has a part that is no object", name);
        type = member(part, "type");
        body = member(part, "text");
        if (!type || json_read_text(&text, &len, type, name, NULL) ||
            !str_among("text|input_text|output_text", text))
            return bad(name, "%s has a part that is not text", name);
        if (!body || json_read_text(&text, &len, body, name, &err))
            return bad(name, "%s has a part without text", name);
        str_append(out, text, len);
    }
    return 0;
}

// Calls that the assistant made, as the model wrote them.
static int read_calls(struct reader *r, const struct json *calls, size_t index, struct str *out) {
    char name[40];
    snprintf(name, sizeof name, "messages[%zu].tool_calls", index);
    if (json_kind(calls) != JSON_KIND_ARRAY) return bad(name, "%s is not an array", name);
    for (size_t i = 0; i < json_length(calls); i++) {
        const struct json *call = json_item(calls, i), *function;
        const char *called, *arguments;
        size_t called_len, arguments_len;
        if (json_kind(call) != JSON_KIND_OBJECT || !(function = member(call, "function")) ||
            json_kind(function) != JSON_KIND_OBJECT ||
            json_read_text(&called, &called_len, json_member(function, "name"), name, NULL) ||
            json_read_text(&arguments, &arguments_len, json_member(function, "arguments"), name,
                           NULL))
            return bad(name, "%s[%zu] wants function.name and function.arguments", name, i);
        struct json_writer w = {.out = out};
        str_puts(out, "```json\n{\"name\":");
        json_put_text(&w, called, called_len);
        str_puts(out, ",\"arguments\":");
        str_append(out, arguments, arguments_len);
        str_puts(out, "}\n```\n");
    }
    return 0;
}

static int read_message(struct reader *r, const struct json *v, size_t index,
                        struct prompt_message *out) {
    char name[40];
    const char *role = NULL;
    size_t len;
    struct error err;
    snprintf(name, sizeof name, "messages[%zu]", index);
    if (json_kind(v) != JSON_KIND_OBJECT) return bad(name, "%s is not an object", name);
    snprintf(name, sizeof name, "messages[%zu].role", index);
    if (json_read_text(&role, &len, json_member(v, "role"), name, &err))
        return bad(name, "%s", err.msg);
    if (prompt_role_parse(&out->role, role, len))
        return bad(name,
                   "unknown role \"%.40s\"; there are system, developer, user, assistant, tool",
                   role);
    const struct json *content = member(v, "content"), *calls = member(v, "tool_calls");
    snprintf(name, sizeof name, "messages[%zu].content", index);
    if (!content && out->role != PROMPT_ASSISTANT) return bad(name, "%s is missing", name);
    struct str text;
    str_init(&text, SIZE_MAX / 2);
    int rc = content ? read_content(r, content, index, &text) : 0;
    if (!rc && calls) rc = read_calls(r, calls, index, &text);
    out->text = arena_copy(&r->out->arena, text.data, text.len);
    out->len = text.len;
    str_free(&text);
    return rc;
}

static int read_thinking(struct reader *r) {
    static const struct {
        const char *effort;
        enum prompt_think think;
    } all[] = {{"none", PROMPT_DONT_THINK},
               {"minimal", PROMPT_THINK_A_BIT},
               {"low", PROMPT_THINK_A_BIT},
               {"medium", PROMPT_THINK},
               {"high", PROMPT_THINK_A_LOT}};
    const struct json *v = member(r->object, "reasoning_effort");
    const char *text;
    size_t len;
    struct error err;
    if (!v) return 0;
    if (json_read_text(&text, &len, v, "reasoning_effort", &err))
        return bad("reasoning_effort", "%s", err.msg);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (strcmp(all[i].effort, text)) continue;
        r->out->think = all[i].think;
        r->out->thinks = all[i].think != PROMPT_DONT_THINK;
        return 0;
    }
    return bad("reasoning_effort",
               "reasoning_effort is \"%.40s\", wanted none, minimal, low, medium or high", text);
}

static int read_messages(struct reader *r) {
    struct request *out = r->out;
    const struct json *v = member(r->object, "messages");
    if (!v) return bad("messages", "messages is missing");
    if (json_kind(v) != JSON_KIND_ARRAY) return bad("messages", "messages is not an array");
    const size_t n = json_length(v);
    if (!n) return bad("messages", "messages cannot be empty");
    if (n > REQUEST_MAX_MESSAGES)
        return bad("messages", "%zu messages, at most %d are taken", n, REQUEST_MAX_MESSAGES);
    struct prompt_message *messages = arena_alloc(&out->arena, n * sizeof *messages);
    for (size_t i = 0; i < n; i++)
        if (read_message(r, json_item(v, i), i, &messages[i])) return -1;
    struct str text;
    str_init(&text, SIZE_MAX / 2);
    prompt_chat(&text, messages, n, out->think);
    out->prompts = arena_alloc(&out->arena, sizeof *out->prompts);
    out->prompts[0] = (struct request_prompt){.text = arena_copy(&out->arena, text.data, text.len),
                                              .len = text.len};
    out->num_prompts = 1;
    str_free(&text);
    for (int i = 0; prompt_stops[i]; i++) out->stops[out->num_stops++] = prompt_stops[i];
    return 0;
}

// ---- the whole ---------------------------------------------------------------------------------

static int read_all(struct reader *r) {
    struct request *out = r->out;
    size_t len;
    if (json_kind(r->object) != JSON_KIND_OBJECT) return bad(NULL, "the body is not a JSON object");
    const struct json *model = member(r->object, "model"), *user = member(r->object, "user");
    if (!model) return bad("model", "model is required and cannot be empty");
    if (!(out->model = copy_text(r, model, "model", REQUEST_MAX_NAME, &len))) return -1;
    if (!len) return bad("model", "model is required and cannot be empty");
    if (user && !copy_text(r, user, "user", 4096, NULL)) return -1;
    const bool chat = out->kind == REQUEST_CHAT;
    if (refuse_absent(r) || (!chat && read_bool(r, r->object, "echo", &out->echo)) ||
        read_numbers(r) || read_stops(r) || read_bias(r) || read_logprobs(r) || read_stream(r) ||
        (chat && read_thinking(r)))
        return -1;
    return chat ? read_messages(r) : read_prompts(r);
}

int request_parse(struct request *out, enum request_kind kind, const char *body, size_t len,
                  struct fault *fault) {
    struct json *root;
    struct error err;
    *out = (struct request){.kind = kind,
                            .max_tokens = -1,
                            .temperature = 1,
                            .top_p = 1,
                            .penalty_decay = 1,
                            .top = -1};
    if (json_parse(&root, body, len, SIZE_MAX, "request body", &err))
        return fault_set(fault, 400, NULL, NULL, "%s", err.msg);
    struct reader r = {.object = root, .out = out, .fault = fault};
    const int rc = read_all(&r);
    json_free(root);
    return rc;
}

void request_free(struct request *r) {
    arena_free(&r->arena);
}
