// What a request gets when it cannot have what it asks for: OpenAI's error object, with the HTTP
// status that goes with it.
#pragma once

struct conn;
struct str;

// Filled by fault_set; owned by the caller.
struct fault {
    int status;       // 0: none
    const char *code; // "model_not_found", or NULL
    char param[64];   // the field at fault, or ""
    char message[600];
};

// Returns -1, so that `return fault_set(…);` reads as it acts. The first fault stays.
int fault_set(struct fault *f, int status, const char *code, const char *param, const char *fmt,
              ...) __attribute__((format(printf, 5, 6)));

// Appends {"error":{…}}.
void fault_write(struct str *out, const struct fault *f);
void fault_reply(struct conn *c, const struct fault *f);
