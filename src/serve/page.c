// GET /: the chat page, one file inside the program.
#include "serve/internal.h"

// web/index.html, turned into C by the Makefile.
extern const char web_index[];
extern const size_t web_index_len;

void handle_page(struct server *s, struct conn *c, const struct http_request *r) {
    (void)s, (void)r;
    conn_reply(c, 200, "text/html; charset=utf-8",
               "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; "
               "script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
               "form-action 'none'; base-uri 'none'; frame-ancestors 'none'\r\n"
               "Referrer-Policy: no-referrer\r\nCache-Control: no-cache\r\n",
               web_index, web_index_len);
}
