#include "serve/fault.h"

#include "base/json.h"
#include "base/str.h"
#include "serve/conn.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int fault_set(struct fault *f, int status, const char *code, const char *param, const char *fmt,
              ...) {
    va_list ap;
    if (f->status) return -1;
    f->status = status;
    f->code = code;
    snprintf(f->param, sizeof f->param, "%s", param ? param : "");
    va_start(ap, fmt);
    vsnprintf(f->message, sizeof f->message, fmt, ap);
    va_end(ap);
    return -1;
}

static const char *type_of(int status) {
    return status == 403   ? "permission_error"
           : status == 429 ? "rate_limit_error"
           : status >= 500 ? "server_error"
                           : "invalid_request_error";
}

void fault_write(struct str *out, const struct fault *f) {
    struct json_writer w = {.out = out};
    json_open(&w, '{');
    json_put_key(&w, "error");
    json_open(&w, '{');
    json_put_key(&w, "message");
    json_put_text(&w, f->message, strlen(f->message));
    json_put_key(&w, "type");
    json_put_text(&w, type_of(f->status), strlen(type_of(f->status)));
    json_put_key(&w, "param");
    if (*f->param)
        json_put_text(&w, f->param, strlen(f->param));
    else
        json_put_null(&w);
    json_put_key(&w, "code");
    if (f->code)
        json_put_text(&w, f->code, strlen(f->code));
    else
        json_put_null(&w);
    json_close(&w, '}');
    json_close(&w, '}');
}

void fault_reply(struct conn *c, const struct fault *f) {
    struct str body;
    str_init(&body, 8192);
    fault_write(&body, f);
    const char *headers = f->status == 429 || f->status == 503 ? "Retry-After: 1\r\n"
                          : f->status == 401                   ? "WWW-Authenticate: Bearer\r\n"
                                                               : NULL;
    conn_reply(c, f->status, "application/json", headers, body.data, body.len);
    str_free(&body);
}
