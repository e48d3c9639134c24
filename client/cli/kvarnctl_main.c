/* kvarnctl: the command line of kvarnd. */
#include "client/cli/ctl.h"

int main(int argc, char **argv)
{
    return ctl_main(argc > 0 ? argc - 1 : 0, argv + 1);
}
