#include "serve/http.h"

#include "base/mem.h"

#include <llhttp.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct http_parser {
    llhttp_t llhttp;
    struct str head; // request line and headers, to the empty line
    size_t body_raw; // bytes of the body's framing and contents so far
    struct http *owner;
};

static int on_body(llhttp_t *p, const char *at, size_t len);
static int on_headers_complete(llhttp_t *p);
static int on_message_complete(llhttp_t *p);
static int on_chunk_header(llhttp_t *p);

static const llhttp_settings_t settings = {
    .on_body = on_body,
    .on_headers_complete = on_headers_complete,
    .on_message_complete = on_message_complete,
    .on_chunk_header = on_chunk_header,
};

void http_init(struct http *h, size_t max_body) {
    *h = (struct http){.max_body = max_body};
}

void http_reset(struct http *h) {
    if (h->parser) str_free(&h->parser->head);
    if (h->request) str_free(&h->request->body);
    free(h->parser);
    free(h->request);
    http_init(h, h->max_body);
}

void http_free(struct http *h) {
    http_reset(h);
}

static void refuse(struct http *h, int status, const char *problem) {
    h->stage = HTTP_BAD;
    h->status = status;
    h->problem = problem;
}

static void begin(struct http *h) {
    h->parser = mem_zero(1, sizeof *h->parser);
    h->request = mem_zero(1, sizeof *h->request);
    h->parser->owner = h;
    str_init(&h->parser->head, HTTP_MAX_URL + HTTP_MAX_HEAD);
    str_init(&h->request->body, h->max_body);
    h->request->content_length = -1;
    llhttp_init(&h->parser->llhttp, HTTP_REQUEST, &settings);
    h->parser->llhttp.data = h->parser;
    h->stage = HTTP_IN_HEAD;
}

// ---- the head ----------------------------------------------------------------------------------

// What llhttp lets pass and others might read in another way: lone CR or LF, NUL, folded lines.
static bool lint(const char *p, size_t len) {
    for (size_t i = 0; i < len; i++) {
        const char c = p[i], before = i ? p[i - 1] : 0, next = i + 1 < len ? p[i + 1] : 0;
        if (!c || (c == '\n') != (before == '\r')) return false;
        if (c == '\n' && (next == ' ' || next == '\t')) return false;
        if ((unsigned char)c < 0x20 && c != '\t' && c != '\r' && c != '\n') return false;
    }
    return true;
}

static int hex(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

// Decodes in place. -1: a bad escape, a control byte, or a way out of the tree.
static int decode_path(char *path) {
    char *to = path;
    for (const char *p = path; *p; p++) {
        int c = (unsigned char)*p;
        if (c == '%') {
            const int high = hex(p[1]), low = high < 0 ? -1 : hex(p[2]);
            if (low < 0) return -1;
            c = high * 16 + low;
            p += 2;
        }
        if (c < 0x20 || c == 0x7f || c == '\\') return -1;
        *to++ = (char)c;
    }
    *to = 0;
    for (const char *p = path; (p = strstr(p, "/..")); p += 3)
        if (p[3] == '/' || !p[3]) return -1;
    return 0;
}

// "METHOD target HTTP/1.x": llhttp has checked it.
static int read_line(struct http *h, char *line) {
    struct http_request *r = h->request;
    r->method = line;
    char *target = strchr(line, ' ');
    if (!target) return -1;
    *target++ = 0;
    char *version = strchr(target, ' ');
    if (!version) return -1;
    *version++ = 0;
    r->is_http_1_0 = !strcmp(version, "HTTP/1.0");
    if (!strncasecmp(target, "http://", 7)) { // absolute form: what proxies are asked in
        target += 7;
        target += strcspn(target, "/?");
        if (*target != '/') return -1;
    }
    r->path = target;
    char *query = strpbrk(target, "?#");
    r->query = query ? query + 1 : target + strlen(target);
    if (query) *query = 0;
    if (!strcmp(target, "*")) return 0; // OPTIONS *
    return *r->path == '/' ? decode_path(r->path) : -1;
}

static char *trim(char *s) {
    s += strspn(s, " \t");
    size_t len = strlen(s);
    while (len && strchr(" \t", s[len - 1])) len--;
    s[len] = 0;
    return s;
}

// Cuts the lines apart, in place. False: too many, or no name.
static bool read_headers(struct http_request *r, char *line) {
    while (*line) {
        char *end = strstr(line, "\r\n"), *colon = strchr(line, ':');
        if (r->num_headers == HTTP_MAX_HEADERS || !end) return false;
        if (!colon || colon > end || colon == line || strcspn(line, " \t") < (size_t)(colon - line))
            return false;
        *end = *colon = 0;
        r->headers[r->num_headers++] = (struct http_header){line, trim(colon + 1)};
        line = end + 2;
    }
    return true;
}

const char *http_header(const struct http_request *r, const char *name, int *count) {
    const char *value = NULL;
    int n = 0;
    for (int i = 0; i < r->num_headers; i++) {
        if (strcasecmp(r->headers[i].name, name)) continue;
        if (!n++) value = r->headers[i].value;
    }
    if (count) *count = n;
    return value;
}

static void judge_head(struct http *h) {
    const struct http_request *r = h->request;
    int hosts;
    const char *host = http_header(r, "host", &hosts), *expect = http_header(r, "expect", NULL);
    if (hosts > 1 || (!r->is_http_1_0 && hosts != 1) || (host && strpbrk(host, "/@ \t,")))
        refuse(h, 400, "exactly one Host header is wanted");
    else if (expect && strcasecmp(expect, "100-continue"))
        refuse(h, 417, "the only expectation that is met is 100-continue");
    else if (r->is_http_1_0 && http_header(r, "transfer-encoding", NULL))
        refuse(h, 400, "HTTP/1.0 has no Transfer-Encoding");
    else if (r->content_length > 0 && (uint64_t)r->content_length > h->max_body)
        refuse(h, 413, "the body is larger than request_body_limit_bytes");
}

// `head` is complete: through llhttp for its judgement, then cut apart.
static void read_head(struct http *h) {
    struct http_parser *p = h->parser;
    struct http_request *r = h->request;
    if (!lint(p->head.data, p->head.len)) {
        refuse(h, 400, "the head has a lone CR or LF, a control byte or a folded line");
        return;
    }
    if (strcspn(p->head.data, "\r") > HTTP_MAX_URL) {
        refuse(h, 414, "the URL is longer than 8192 bytes");
        return;
    }
    const llhttp_errno_t rc = llhttp_execute(&p->llhttp, p->head.data, p->head.len);
    if (rc == HPE_INVALID_VERSION) {
        refuse(h, 505, "HTTP/1.1 and HTTP/1.0 are spoken here");
        return;
    }
    if (rc != HPE_PAUSED) {
        refuse(h, 400, "not a well-formed HTTP/1.1 request");
        return;
    }
    if (p->llhttp.http_major != 1 || p->llhttp.http_minor > 1) {
        refuse(h, 505, "HTTP/1.1 and HTTP/1.0 are spoken here");
        return;
    }
    if (p->llhttp.flags & F_CONTENT_LENGTH) r->content_length = (int64_t)p->llhttp.content_length;
    r->keep_alive = llhttp_should_keep_alive(&p->llhttp);
    char *line = p->head.data, *rest = strstr(line, "\r\n");
    *rest = 0;
    p->head.data[p->head.len - 2] = 0; // the empty line
    h->stage = HTTP_IN_BODY;
    if (read_line(h, line))
        refuse(h, 400, "a bad request target");
    else if (!read_headers(r, rest + 2))
        refuse(h, r->num_headers == HTTP_MAX_HEADERS ? 431 : 400,
               r->num_headers == HTTP_MAX_HEADERS ? "more than 100 headers" : "a bad header");
    else
        judge_head(h);
    const char *expect = http_header(r, "expect", NULL);
    r->expects_continue = expect && !r->is_http_1_0;
}

// Takes bytes up to the end of the head.
static size_t feed_head(struct http *h, const char *data, size_t len) {
    struct str *head = &h->parser->head;
    size_t i = 0;
    for (; i < len && h->stage == HTTP_IN_HEAD; i++) {
        if (!head->len && (data[i] == '\r' || data[i] == '\n')) continue; // before a request
        if (str_putc(head, data[i])) {
            const bool in_line = !memchr(head->data, '\n', head->len);
            refuse(h, in_line ? 414 : 431,
                   in_line ? "the URL is longer than 8192 bytes"
                           : "the headers are longer than 16384 bytes");
        } else if (data[i] == '\n' && head->len >= 4 &&
                   !memcmp(head->data + head->len - 4, "\r\n\r\n", 4)) {
            const char *line_end = strchr(head->data, '\n');
            if (head->len - (size_t)(line_end - head->data) > HTTP_MAX_HEAD)
                refuse(h, 431, "the headers are longer than 16384 bytes");
            else
                read_head(h);
        } else if (data[i] == '\n' && head->len >= 2 && head->data[head->len - 2] == '\n') {
            refuse(h, 400, "the head has a lone LF");
        }
    }
    return i;
}

// ---- the body ----------------------------------------------------------------------------------

static int on_headers_complete(llhttp_t *p) {
    (void)p;
    return HPE_PAUSED;
}

static int on_message_complete(llhttp_t *p) {
    ((struct http_parser *)p->data)->owner->stage = HTTP_COMPLETE;
    return HPE_PAUSED;
}

static int on_body(llhttp_t *p, const char *at, size_t len) {
    struct http *h = ((struct http_parser *)p->data)->owner;
    if (!str_append(&h->request->body, at, len)) return 0;
    refuse(h, 413, "the body is larger than request_body_limit_bytes");
    return HPE_USER;
}

// A chunk's size is judged before its bytes come.
static int on_chunk_header(llhttp_t *p) {
    struct http *h = ((struct http_parser *)p->data)->owner;
    if (p->content_length <= h->max_body - h->request->body.len) return 0;
    if (p->content_length > INT64_MAX)
        refuse(h, 400, "a chunk's size is no size");
    else
        refuse(h, 413, "the body is larger than request_body_limit_bytes");
    return HPE_USER;
}

static size_t feed_body(struct http *h, const char *data, size_t len) {
    struct http_parser *p = h->parser;
    llhttp_resume(&p->llhttp);
    const llhttp_errno_t rc = llhttp_execute(&p->llhttp, data, len);
    const size_t taken = rc == HPE_OK ? len : (size_t)(llhttp_get_error_pos(&p->llhttp) - data);
    p->body_raw += taken;
    if (h->stage == HTTP_COMPLETE || h->stage == HTTP_BAD) return taken;
    // Chunk sizes and extensions cost the sender more than us, up to a point.
    if (rc != HPE_OK)
        refuse(h, 400, "the body's framing is broken");
    else if (p->body_raw > HTTP_MAX_HEAD + 8 * h->request->body.len)
        refuse(h, 400, "the chunks' framing is much larger than their contents");
    return taken;
}

size_t http_feed(struct http *h, const char *data, size_t len) {
    if (h->stage == HTTP_AT_START) {
        size_t i = 0;
        while (i < len && (data[i] == '\r' || data[i] == '\n')) i++;
        if (i || !len) return i;
        begin(h);
    }
    if (h->stage == HTTP_IN_HEAD) {
        const size_t taken = feed_head(h, data, len);
        // Without a body nothing more will come that could end it.
        if (h->stage == HTTP_IN_BODY) feed_body(h, data + taken, 0);
        return taken;
    }
    if (h->stage == HTTP_IN_BODY) return feed_body(h, data, len);
    return 0;
}
