// An engine of a hundred lines that stands in for the real one: it answers a prompt with its
// tokens, backwards, one by one, as fast as it is asked to. What links it links no model.
#pragma once
#include <stdbool.h>

// How many answers the fakes are at now, and how many microseconds a step takes them.
extern _Atomic int fake_running, fake_step_us;
// What the next engine_open says: NULL is success.
extern const char *fake_open_error;
// Whether the device breaks at the next step.
extern _Atomic bool fake_fails;
// What engine_plan says an engine takes, and how many engines are open.
extern _Atomic unsigned long long fake_bytes;
extern _Atomic int fake_open;
