// Any answer of a server in any pieces: the same verdict and the same figures; and what the scan of
// a chunk says is what its document says.
#include "../../cmd/load_answer.h"

#include "base/json.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static bool has_text(const struct json *object, const char *key) {
    const struct json *v = json_member(object, key);
    return v && json_kind(v) == JSON_KIND_TEXT;
}

static bool has_some(const struct json *object, const char *key) {
    const char *text;
    size_t len;
    return has_text(object, key) &&
           json_read_text(&text, &len, json_member(object, key), key, NULL) == 0 && len > 0;
}

static const struct json *inside(const struct json *object, const char *key, enum json_kind kind) {
    const struct json *v = json_member(object, key);
    return v && json_kind(v) == kind ? v : NULL;
}

static void read_choice(struct sse_chunk *out, const struct json *choice) {
    static const char *const rooms[] = {"delta", "message"};
    static const char *const texts[] = {"content", "reasoning_content", "reasoning", "refusal"};
    out->text |= has_some(choice, "text");
    out->finished |= has_text(choice, "finish_reason");
    for (int r = 0; r < 2; r++) {
        const struct json *room = inside(choice, rooms[r], JSON_KIND_OBJECT);
        if (!room) continue;
        for (int i = 0; i < 4; i++) out->text |= has_some(room, texts[i]);
        const struct json *calls = inside(room, "tool_calls", JSON_KIND_ARRAY);
        for (size_t i = 0; calls && i < json_length(calls); i++)
            out->text |= json_kind(json_item(calls, i)) == JSON_KIND_OBJECT;
    }
}

static int64_t count_in(const struct json *usage, const char *key) {
    const struct json *v = usage ? inside(usage, key, JSON_KIND_INT) : NULL;
    int64_t n;
    return v && json_read_int(&n, v, 0, INT64_C(999999999999999), key, NULL) == 0 ? n : -1;
}

// Keys written with escapes and a count of -0 are what the scan doesn't see through, and nobody
// writes them.
static bool is_comparable(const char *text, size_t len) {
    return len && !memchr(text, '\\', len) && !memchr(text, '-', len);
}

// The scan against the document, for texts that are strict JSON.
static void check_scan(const char *text, size_t len) {
    struct json *root = NULL;
    struct sse_chunk scanned, read = {0};
    const int rc = sse_scan(&scanned, text, len);
    if (!is_comparable(text, len) || json_parse(&root, text, len, 1 << 20, "chunk", NULL)) {
        json_free(root);
        return;
    }
    if ((json_kind(root) == JSON_KIND_OBJECT) != (rc == 0)) abort();
    if (rc == 0) {
        const struct json *error = json_member(root, "error");
        const struct json *choices = inside(root, "choices", JSON_KIND_ARRAY);
        const struct json *usage = inside(root, "usage", JSON_KIND_OBJECT);
        read.error = error && json_kind(error) != JSON_KIND_NULL;
        for (size_t i = 0; choices && i < json_length(choices); i++)
            if (json_kind(json_item(choices, i)) == JSON_KIND_OBJECT)
                read_choice(&read, json_item(choices, i));
        if (read.text != scanned.text || read.error != scanned.error ||
            read.finished != scanned.finished ||
            count_in(usage, "prompt_tokens") != scanned.prompt_tokens ||
            count_in(usage, "completion_tokens") != scanned.completion_tokens)
            abort();
    }
    json_free(root);
}

static enum load_progress read_answer(struct load_request *r, const char *text, size_t len,
                                      size_t piece, bool streams) {
    struct load_answer a;
    enum load_progress p = LOAD_MORE;
    *r = (struct load_request){.fault = LOAD_UNSENT};
    load_answer_init(&a);
    load_answer_begin(&a, r, streams, 1);
    for (size_t at = 0; at < len && p == LOAD_MORE; at += piece)
        p = load_answer_feed(&a, text + at, len - at < piece ? len - at : piece, 2);
    if (p == LOAD_MORE) p = load_answer_feed(&a, NULL, 0, 2);
    if (p == LOAD_MORE || (a.reusable && p != LOAD_COMPLETE)) abort();
    load_answer_free(&a);
    return p;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    if (!len) return 0;
    const bool streams = data[0] & 1;
    const size_t piece = 1 + (data[0] >> 1) % 9;
    char *text = malloc(len);
    memcpy(text, data + 1, --len);
    struct load_request whole, cut;
    check_scan(text, len);
    const enum load_progress p = read_answer(&whole, text, len, len ? len : 1, streams);
    const enum load_progress q = read_answer(&cut, text, len, piece, streams);
    if (p != q || whole.fault != cut.fault || whole.chunks != cut.chunks ||
        whole.output_tokens != cut.output_tokens || whole.prompt_tokens != cut.prompt_tokens ||
        whole.status != cut.status || !whole.error != !cut.error)
        abort();
    if (whole.error && strcmp(whole.error, cut.error)) abort();
    load_request_free(&whole);
    load_request_free(&cut);
    free(text);
    return 0;
}
