#include "text/prompt.h"

#include "base/str.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

const char *const prompt_stops[] = {"\n\nUser:", "\n\nSystem:", "\n\nAssistant:", NULL};

int prompt_role_parse(enum prompt_role *out, const char *name, size_t len) {
    static const struct {
        const char *name;
        enum prompt_role role;
    } roles[] = {{"system", PROMPT_SYSTEM}, {"developer", PROMPT_SYSTEM},
                 {"user", PROMPT_USER},     {"assistant", PROMPT_ASSISTANT},
                 {"tool", PROMPT_TOOL},     {"function", PROMPT_TOOL}};
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++) {
        if (strlen(roles[i].name) != len || strncasecmp(roles[i].name, name, len)) continue;
        *out = roles[i].role;
        return 0;
    }
    return -1;
}

static bool is_space(char c) {
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

// The text without spaces around it, "\r\n" as "\n", and runs of line feeds as one.
static int put_clean(struct str *out, const char *text, size_t len) {
    size_t begin = 0;
    while (begin < len && is_space(text[begin])) begin++;
    while (len > begin && is_space(text[len - 1])) len--;
    bool after_feed = false;
    size_t kept = begin; // text[kept..i) is as it shall be
    for (size_t i = begin; i < len; i++) {
        const bool feed = text[i] == '\n', paired = text[i] == '\r' && text[i + 1] == '\n';
        if (paired || (feed && after_feed)) {
            if (str_append(out, text + kept, i - kept)) return -1;
            kept = i + 1;
        }
        if (!paired) after_feed = feed;
    }
    return str_append(out, text + kept, len - kept);
}

static bool is_blank(const struct prompt_message *m) {
    size_t i = 0;
    while (i < m->len && is_space(m->text[i])) i++;
    return i == m->len;
}

int prompt_chat(struct str *out, const struct prompt_message *messages, size_t count,
                enum prompt_think think) {
    static const char *const names[] = {[PROMPT_SYSTEM] = "System: ",
                                        [PROMPT_USER] = "User: ",
                                        [PROMPT_ASSISTANT] = "Assistant: ",
                                        [PROMPT_TOOL] = "User: Function output:"};
    static const char *const asks[] = {[PROMPT_PLAIN] = "",
                                       [PROMPT_DONT_THINK] = "",
                                       [PROMPT_THINK_A_BIT] = " (think a bit)",
                                       [PROMPT_THINK] = " (think)",
                                       [PROMPT_THINK_A_LOT] = " (think a lot)"};
    static const char *const openings[] = {[PROMPT_PLAIN] = "",
                                           [PROMPT_DONT_THINK] = " <think></think>",
                                           [PROMPT_THINK_A_BIT] = " <think",
                                           [PROMPT_THINK] = " <think",
                                           [PROMPT_THINK_A_LOT] = " <think"};
    for (size_t i = 0; i < count; i++) {
        const bool asked = i + 1 == count && messages[i].role == PROMPT_USER;
        const bool below = messages[i].role == PROMPT_TOOL && !is_blank(&messages[i]);
        if (str_puts(out, names[messages[i].role]) || (below && str_putc(out, '\n')) ||
            put_clean(out, messages[i].text, messages[i].len) ||
            (asked && str_puts(out, asks[think])) || str_puts(out, "\n\n"))
            return -1;
    }
    return str_puts(out, "Assistant:") || str_puts(out, openings[think]) ? -1 : 0;
}
