// What a hot reload does to the text of an infer TOML.
#pragma once
#include <stddef.h>

struct error;
struct json;
struct str;

enum { CONFIG_PATCH_MAX_NAMES = 1024 }; // in each list of a request

// Applies {"upsert": [entry…], "remove_model_names": [name…]} to the TOML text that stands at
// `path` (for messages). An entry is a table [[models]] as JSON: strings, numbers, booleans and
// arrays of them. It replaces the one of its model_name key by key: keys it doesn't have go, new
// ones come below, the same ones change in their place, and what says the same already isn't
// touched; without one it goes behind the last. A name in both lists is replaced. "dry_run" and
// "force" are the caller's. What the keys mean is not judged here: infer_config_parse of the result
// does.
//
// On failure the text is as before. E_ARG: the request is at fault; E_CONFIG: the text is;
// E_LIMIT: the text would grow past its ceiling.
int config_patch(struct str *text, const char *path, const struct json *request, struct error *err);

// Puts the text in the file's place: atomically, with the file's permissions (it may hold an
// api_key), and through a link, which stays one.
int config_save(const char *path, const char *text, size_t len, struct error *err);
