// Chat messages as the text that RWKV-7 G1 models were trained on (RWKV7-G1x-templates.txt;
// SPEC-rwkv7 §8): "System: …", "User: …", "Assistant: …", separated by empty lines.
#pragma once
#include <stddef.h>

struct error;
struct str;

enum prompt_role { PROMPT_SYSTEM, PROMPT_USER, PROMPT_ASSISTANT, PROMPT_TOOL };

struct prompt_message {
    enum prompt_role role;
    const char *text;
    size_t len;
};

enum prompt_think {
    PROMPT_PLAIN,      // "Assistant:": the model does as it likes
    PROMPT_DONT_THINK, // "Assistant: <think></think>"
    PROMPT_THINK_A_BIT,
    PROMPT_THINK,
    PROMPT_THINK_A_LOT,
};

// Case doesn't matter; developer is system, function is tool. -1: no such role.
int prompt_role_parse(enum prompt_role *out, const char *name, size_t len);

// Appends the prompt. Inside a message there is never an empty line (runs of line feeds become
// one, as in the templates), so no text can begin a turn. -1: the ceiling of `out`.
int prompt_chat(struct str *out, const struct prompt_message *messages, size_t count,
                enum prompt_think think);

// Strings at which the model begins somebody's next turn. NULL at the end.
extern const char *const prompt_stops[];
