#include "load_plan.h"

#include "base/error.h"
#include "base/json.h"
#include "base/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { MAX_REQUEST = 64 << 20 };

// Streams of the random numbers: one thing drawn must not shift another.
enum { STREAM_ARRIVALS = 1, STREAM_WORDS = 1 << 20 };

int load_target_parse(struct load_target *t, const char *base_url, bool chat, struct error *err) {
    const char *const at = strstr(base_url, "://");
    if (!strncasecmp(base_url, "https://", 8))
        return fail(err, E_UNSUPPORTED,
                    "--base-url is %s: https is not offered, wanted http://; measure the server "
                    "itself, behind what speaks TLS for it",
                    base_url);
    if (!at || strncasecmp(base_url, "http://", 7))
        return fail(err, E_ARG, "--base-url is \"%s\", wanted http://host[:port][/prefix]",
                    base_url);
    const char *host = at + 3;
    const size_t len = strcspn(host, "/?#");
    const char *prefix = host + len, *colon = NULL;
    size_t host_len = len;
    if (*host == '[') { // an IPv6 address
        const char *close = memchr(host, ']', len);
        host_len = close ? (size_t)(close - host) + 1 : 0;
        if (close && host_len < len) colon = close + 1;
    } else if ((colon = memchr(host, ':', len))) {
        host_len = (size_t)(colon - host);
    }
    const bool bracketed = *host == '[';
    const size_t port_len = colon ? len - host_len - 1 : 0;
    size_t prefix_len = strlen(prefix);
    while (prefix_len && prefix[prefix_len - 1] == '/') prefix_len--;
    if (prefix_len >= 3 && !memcmp(prefix + prefix_len - 3, "/v1", 3)) prefix_len -= 3;
    const bool port_fine = !colon || (*colon == ':' && port_len >= 1 && port_len <= 5 &&
                                      strspn(colon + 1, "0123456789") >= port_len &&
                                      atol(colon + 1) >= 1 && atol(colon + 1) <= 65535);
    if (host_len < (bracketed ? 4u : 1u) || host_len > 250 || prefix_len > 400 || !port_fine ||
        strpbrk(base_url, " \t\r\n@?#"))
        return fail(err, E_ARG, "--base-url is \"%s\", wanted http://host[:port][/prefix]",
                    base_url);
    snprintf(t->host, sizeof t->host, "%.*s", (int)(bracketed ? host_len - 2 : host_len),
             host + bracketed);
    snprintf(t->port, sizeof t->port, "%.*s", (int)(colon ? port_len : 2),
             colon ? colon + 1 : "80");
    snprintf(t->authority, sizeof t->authority, "%.*s", (int)len, host);
    snprintf(t->path, sizeof t->path, "%.*s/v1/%s", (int)prefix_len, prefix,
             chat ? "chat/completions" : "completions");
    return 0;
}

// ---- prompts -----------------------------------------------------------------------------------

// Common words of one to three tokens in most vocabularies.
static const char *const vocabulary[] = {
    "the",   "of",     "and",   "to",      "in",       "that",    "water",    "river",  "stone",
    "over",  "under",  "night", "morning", "light",    "garden",  "winter",   "a",      "house",
    "small", "great",  "old",   "young",   "people",   "city",    "mountain", "road",   "between",
    "after", "before", "when",  "while",   "through",  "window",  "letter",   "music",  "paper",
    "green", "silver", "quiet", "deep",    "very",     "almost",  "never",    "often",  "again",
    "first", "second", "third", "number",  "question", "answer",  "reason",   "story",  "history",
    "ship",  "island", "storm", "summer",  "market",   "bread",   "table",    "door",   "bridge",
    "north", "south",  "east",  "west",    "train",    "machine", "signal",   "field",  "forest",
    "horse", "bird",   "fish",  "child",   "mother",   "father",  "friend",   "king",   "writes",
    "reads", "finds",  "keeps", "turns",   "brings",   "leaves",  "opens",    "closes", "follows",
    "moves", "speaks", "asks",  "walks",   "builds",   "carries", "holds",    "knows",  "remembers",
    "with",  "from",   "into",  "without", "against",  "toward",  "near",     "far",    "long",
    "short", "heavy",  "early", "late",    "new",      "open",    "strange",  "simple", "clear",
    "dark",  "warm",   "cold",  "each",    "every",    "some",    "many",     "few",    "another",
    "his",   "her",
};

void load_prompt_write(struct str *out, uint64_t seed, uint64_t id, int words) {
    const size_t count = sizeof vocabulary / sizeof vocabulary[0];
    uint64_t sentence = 0; // words that are left of it
    for (int i = 0; i < words; i++) {
        const uint64_t draw = rng_u64(seed, STREAM_WORDS + id, (uint64_t)i);
        const char *const word = vocabulary[draw % count];
        const bool begins = sentence == 0;
        if (begins) sentence = 6 + (draw >> 32) % 12;
        if (i) str_putc(out, ' ');
        str_putc(out, begins ? (char)(*word - 'a' + 'A') : *word);
        str_puts(out, word + 1);
        if (--sentence == 0 || i == words - 1) str_putc(out, '.');
    }
}

static void put_text(struct json_writer *w, const char *key, const char *text, size_t len) {
    json_put_key(w, key);
    json_put_text(w, text, len);
}

static void put_body(struct str *out, const struct load_plan *plan, const struct str *prompt,
                     int max_tokens) {
    struct json_writer w = {.out = out};
    json_open(&w, '{');
    put_text(&w, "model", plan->model, strlen(plan->model));
    if (plan->chat) {
        json_put_key(&w, "messages");
        json_open(&w, '[');
        json_open(&w, '{');
        put_text(&w, "role", "user", 4);
        put_text(&w, "content", prompt->data, prompt->len);
        json_close(&w, '}');
        json_close(&w, ']');
    } else {
        put_text(&w, "prompt", prompt->data, prompt->len);
    }
    json_put_key(&w, "max_tokens");
    json_put_int(&w, max_tokens);
    json_put_key(&w, "temperature");
    json_put_float(&w, plan->temperature);
    json_put_key(&w, "stream");
    json_put_bool(&w, plan->stream);
    if (plan->stream) {
        json_put_key(&w, "stream_options");
        json_open(&w, '{');
        json_put_key(&w, "include_usage");
        json_put_bool(&w, true);
        json_close(&w, '}');
    }
    if (plan->extra) {
        str_putc(out, ',');
        str_puts(out, plan->extra);
    }
    json_close(&w, '}');
}

void load_request_write(struct str *out, const struct load_plan *plan, uint64_t id, int words,
                        int max_tokens) {
    struct str prompt, body;
    str_init(&prompt, MAX_REQUEST);
    str_init(&body, MAX_REQUEST);
    load_prompt_write(&prompt, plan->seed, id, words);
    put_body(&body, plan, &prompt, max_tokens);
    str_printf(out,
               "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: rwkv-bench\r\n"
               "Content-Type: application/json\r\nAccept: %s\r\nContent-Length: %zu\r\n",
               plan->target.path, plan->target.authority,
               plan->stream ? "text/event-stream" : "application/json", body.len);
    if (plan->api_key) str_printf(out, "Authorization: Bearer %s\r\n", plan->api_key);
    str_puts(out, "\r\n");
    str_append(out, body.data, body.len);
    str_free(&prompt);
    str_free(&body);
}

// ---- times -------------------------------------------------------------------------------------

void load_schedule(double *start_s, size_t n, double rate, bool poisson, uint64_t seed) {
    double at = 0;
    for (size_t i = 0; i < n; i++) {
        start_s[i] = poisson ? at : (double)i / rate;
        at -= log(1 - rng_uniform(seed, STREAM_ARRIVALS, i)) / rate;
    }
}
