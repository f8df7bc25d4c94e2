#include "kernels/depth_aggregate/depth_aggregate.h"
