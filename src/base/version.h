// The version of the program.
#pragma once

#define RWKV_VERSION "0.1.0"
