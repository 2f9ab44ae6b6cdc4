// Engines on the processor take turns: one step at a time has all threads of the machine, and who
// waits longest is next. Engines on other devices don't need it.
#pragma once

void turn_take(void);
void turn_leave(void);
